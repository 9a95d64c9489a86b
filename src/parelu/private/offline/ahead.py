"""Threads for what an offline phase can do ahead of its turn, one a core."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


@functools.cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(len(os.sched_getaffinity(0)), "ahead")


os.register_at_fork(after_in_child=_threads.cache_clear)  # a child has none of its parent's threads


def ahead(make: Callable[..., Any], *arguments: Any) -> Future[Any]:
    """Start to make it; whoever needs it waits for `result`."""
    return _threads().submit(make, *arguments)
