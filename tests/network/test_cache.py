"""Compiled loops where nothing can be kept."""

from pathlib import Path

import numpy as np
import pytest
from numba.core import caching

from parelu.errors import UserError
from parelu.network.cache import compiled, folder


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


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch):
    def nowhere():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", nowhere)
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    with pytest.raises(UserError, match="set XDG_CACHE_HOME"):
        folder()
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert folder() == Path("/cache/parelu")
