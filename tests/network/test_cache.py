"""Compiled loops where nothing can be kept."""

import numpy as np
import pytest
from numba.core import caching

from parelu.network.cache import compiled


def double(values):
    for i in range(len(values)):
        values[i] *= 2


@pytest.mark.parametrize("writable", [True, False])
def test_a_loop_is_compiled_also_where_its_code_cannot_be_kept(monkeypatch, writable):
    """numba asks its locators in turn for a folder that it can write to."""
    if not writable:
        monkeypatch.setattr(caching.CacheImpl, "_locator_classes", [])
    loop = compiled(nogil=True)(double)
    assert (loop._cache.cache_path is not None) == writable
    values = np.arange(3.0)
    loop(values)
    assert values.tolist() == [0, 2, 4]
    assert loop.targetoptions["nogil"]
