"""What a benchmark ran on: device, processor, memory, versions, commit and command line."""

import os
import platform
import re
import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

REPOSITORY = Path(__file__).resolve().parents[2]


def describe(device: torch.device | str = "cpu") -> dict[str, Any]:
    """The device, the processor, its memory and load, the system and the versions, as a record holds them."""
    on_gpu = str(device).startswith("cuda")
    about: dict[str, Any] = {
        "device": os.environ.get("FASTDM_DEVICE_NAME") or torch.cuda.get_device_name(device) if on_gpu else "cpu",
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load": round(os.getloadavg()[0], 2),  # runnable processes, over the last minute
        "system": f"{platform.system()} {platform.machine()}",
        "versions": {"python": platform.python_version()}
        | {name: _version(name) for name in ("torch", "triton", "numpy", "fastdm")},
    }
    if on_gpu:
        about["cuda"] = torch.version.cuda
        about["driver"] = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").split("\n")[0]
    return about


def commit() -> str:
    """The commit that is measured: what FASTDM_COMMIT says, or git, with "-dirty" if the code differs."""
    if named := os.environ.get("FASTDM_COMMIT"):
        return named
    git = ("git", "-C", str(REPOSITORY))
    head = _output(*git, "rev-parse", "--short=12", "HEAD")
    if not head:
        return "0000000"
    changes = _output(*git, "status", "--porcelain", "--", "fastdm", "kernels", "csrc", "bench/*.py")
    return head + ("-dirty" if changes else "")


def command() -> str:
    """The command line of this process, as one types it in the repository."""
    module = getattr(sys.modules["__main__"].__spec__, "name", None)
    program = f"python -m {module}" if module else f"python {Path(sys.argv[0]).name}"
    return " ".join([program, *(shlex.quote(relative(word)) for word in sys.argv[1:])])


def relative(word: str) -> str:
    """Only the last name of an absolute path: the folders of this machine mean nothing to others."""
    return Path(word).name if Path(word).is_absolute() else word


def slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _cpu() -> str:
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    found = re.search(r"model name\s*:\s*(.*)", text)
    return " ".join(re.sub(r"\((R|TM)\)|CPU|Processor", " ", found[1]).split()) if found else platform.machine()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


def _output(*arguments: str) -> str:
    try:
        return subprocess.run(arguments, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
