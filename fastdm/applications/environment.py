"""What a bug report needs to say of the machine and of what is installed."""

import importlib.metadata
import importlib.util
import os
import platform
import sys
from typing import Any

import torch

from fastdm.system.device import default_device, fastest_precision, free_memory
from fastdm.system.machine import processor
from fastdm.system.native import native
from fastdm.system.text import size_text
from fastdm.version import __version__

PACKAGES = ("torch", "torchvision", "triton", "numpy", "pillow", "safetensors", "typer", "rich", "simplejpeg")

VARIABLES = ("FASTDM_", "OMP_", "MKL_", "GOMP_", "KMP_", "CUDA_", "TRITON_", "TORCH_", "PYTORCH_", "ATEN_", "ONEDNN_")
"""Beginnings of environment variables that change how fast or how a run goes."""


def summary() -> dict[str, Any]:
    """Versions, processor, GPU, memory and settings, by name."""
    device = default_device(None)
    return {
        "fastdm": __version__,
        "python": f"{platform.python_version()} ({sys.executable})",
        "system": f"{platform.platform()}, {' '.join(platform.libc_ver())}",
        "packages": {name: _version(name) for name in PACKAGES},
        "cpu": processor(),
        "cpu_features": torch.backends.cpu.get_cpu_capability(),
        "amx": torch.cpu._is_amx_tile_supported(),
        "threads": f"{torch.get_num_threads()} of {len(os.sched_getaffinity(0))} usable processors",
        "ops_on_cpu": "C++ core" if native() is not None else "PyTorch, slower: the C++ core is not installed",
        "memory_free": size_text(free_memory()),
        "gpus": [_gpu(number) for number in range(torch.cuda.device_count())],
        "cuda": torch.version.cuda if torch.cuda.is_available() else "not available",
        "default_device": str(device),
        "default_precision": fastest_precision(device),
        "ops_on_gpu": "Triton kernels" if importlib.util.find_spec("triton") else "PyTorch: triton is not installed",
        "variables": {name: value for name, value in sorted(os.environ.items()) if name.startswith(VARIABLES)},
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _gpu(number: int) -> str:
    properties = torch.cuda.get_device_properties(number)
    version = f"{properties.major}.{properties.minor}"
    return f"{properties.name}, compute capability {version}, {size_text(properties.total_memory)}"
