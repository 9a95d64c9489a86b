"""Versions and machine."""

from __future__ import annotations

import platform
from importlib.metadata import version
from typing import Any

import torch

from parelu.network.machine import cores, processor


def environment() -> dict[str, Any]:
    """Versions and machine, for the report."""
    packages = ("parelu", "torch", "numpy", "safetensors")
    return {
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
        "platform": platform.platform(),
        "processor": processor(),
        "cores": cores(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }
