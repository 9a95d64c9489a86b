"""What the tests of training learn from."""

import pytest

from parelu import data
from parelu.data.dataset import Dataset


@pytest.fixture(scope="session")
def digits() -> Dataset:
    return data.load("digits")
