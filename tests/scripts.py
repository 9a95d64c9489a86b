"""Scripts of the repository as modules."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parent.parent


def script(path: str) -> ModuleType:
    """path: below the root, such as benchmarks/he.py."""
    name = path.removesuffix(".py").replace("/", "_")
    spec = importlib.util.spec_from_file_location(name, ROOT / path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look for their annotations
    beside = str((ROOT / path).parent)  # last, as some there have names of the standard library's
    sys.path.append(beside)
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(beside)
    return module
