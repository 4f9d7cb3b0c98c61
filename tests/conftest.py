"""What every run of the tests has in common, and what it says of itself: which instructions and forms it tests."""

import os
import re
import signal
from pathlib import Path

import pytest

import fastdm  # noqa: F401  # before torch, whose threads then do not spin between two ops, on cores that others use

# A shell lets commands in the background ignore it, and what they start inherits that: no test could interrupt a run.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_report_header(config: pytest.Config) -> list[str]:
    import torch

    from fastdm.kernels import extension

    core = extension.load()
    held = [f"{name}={os.environ[name]}" for name in _LIMITS if name in os.environ]
    return [
        f"processor: {_processor()}",
        f"fastdm's C++ core: {f'{core.instructions()}, tiles {core.tiles()}' if core else 'not installed'}; "
        f"PyTorch: {torch.backends.cpu.get_cpu_capability()}; Triton: {_triton()}",
        f"held down by: {', '.join(held) or 'nothing'}",
    ]


_LIMITS = (
    "FASTDM_CPU",
    "FASTDM_TILES",
    "ATEN_CPU_CAPABILITY",
    "ONEDNN_MAX_CPU_ISA",
    "TRITON_INTERPRET",
    "FASTDM_TEST_DEVICE",
)


def _processor() -> str:
    """The processor's name and those of its flags that decide about arithmetic."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return "unknown"
    name = re.search(r"^model name\s*: (.*)$", text, re.MULTILINE)
    flags = re.search(r"^flags\s*: (.*)$", text, re.MULTILINE)
    wide = [flag for flag in flags[1].split() if re.match(r"avx|fma$|amx", flag)] if flags else []
    return f"{name[1] if name else 'unknown'} ({' '.join(wide)})"


def _triton() -> str:
    if os.environ.get("TRITON_INTERPRET") == "1":
        return "interpreted"
    return "compiled" if os.environ.get("FASTDM_TEST_DEVICE") == "cuda" else "not run"
