"""What this machine is: shown in reports, decides nothing."""

import os
import platform
from pathlib import Path

import torch

from fastdm.version import __version__

CPUINFO = Path("/proc/cpuinfo")


def machine(device: torch.device) -> dict[str, str]:
    """Device, processor, memory and versions, each as a short text."""
    found = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "processor": processor(),
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "fastdm": __version__,
    }
    if device.type == "cuda":
        size = torch.cuda.get_device_properties(device).total_memory
        found["device"] += f", {size / 2**30:.0f} GiB, CUDA {torch.version.cuda}"
    return found


def processor() -> str:
    """The processor's name, where the system shows it, and its threads."""
    try:
        lines = CPUINFO.read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {len(names) or os.cpu_count()} threads"
