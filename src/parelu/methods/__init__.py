"""Methods: one file a paper, the folder is the registry.

A method's class can be had from here, whatever file or package it is in: `from parelu.methods import SNL`.
"""

from typing import Any


def __getattr__(name: str) -> Any:
    if name[:1].isupper():
        from parelu.methods.base import methods

        for method in methods().values():
            if method.__name__ == name:
                return method
    raise AttributeError(f"module 'parelu.methods' has no attribute {name!r}")
