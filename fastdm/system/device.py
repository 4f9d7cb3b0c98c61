"""What this machine offers: device, backend of the ops, precision, free memory."""

import os
import resource
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal, cast

import torch

from fastdm.errors import FastDMError
from fastdm.kernels import use_backend

Precision = Literal["fp32", "tf32", "bf16"]

CGROUPS = Path("/sys/fs/cgroup")
"""Where Linux shows the control groups."""


def default_device(device: str | torch.device | None) -> torch.device:
    """The requested device, by default the GPU if there is one.

    A CUDA device without an index becomes the current one; no device at all becomes `own_gpu`. Raises FastDMError for a
    device that is not available.
    """
    try:
        if device is None or device == "":
            device = f"cuda:{own_gpu()}" if torch.cuda.is_available() else "cpu"
        chosen = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise FastDMError(f"device {device!r} is unknown; it must be cpu, cuda, or cuda:1 and so on") from error
    try:
        if chosen.type not in ("cpu", "cuda"):
            raise FastDMError(f"device {device!r} is neither a CPU nor a CUDA device")
        return indexed_device(chosen)
    except (RuntimeError, AssertionError) as error:
        raise FastDMError(f"device {device!r} cannot be used here ({str(error).splitlines()[0]})") from error


def own_gpu() -> int:
    """The number of this process's GPU: the current one; of several processes that a launcher started on this machine,
    and that have chosen none, that of the local number."""
    current = torch.cuda.current_device()
    local = os.environ.get("LOCAL_RANK", "")
    if current == 0 and processes_here() > 1 and local.isdecimal():
        return int(local) % torch.cuda.device_count()
    return current


def indexed_device(device: str | torch.device) -> torch.device:
    """The device as tensors on it name it: "cuda" is the current one, such as cuda:0."""
    return torch.empty(1, device=device).device


@contextmanager
def chosen_backend(backend: str, device: torch.device | None = None) -> Iterator[None]:
    """`fastdm.kernels.use_backend`; a backend that is unknown or not available is a FastDMError.

    device: where the computation runs. On a GPU "triton" is what "auto" takes for its tensors, and leaves what runs on
    the CPU meanwhile, such as the draws of images that are read ahead, to the forms for CPUs.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(use_backend(cast(Any, backend)))
            if backend == "triton" and device is not None and device.type == "cuda":
                stack.enter_context(use_backend("auto"))
        except (RuntimeError, ValueError) as error:
            raise FastDMError(str(error)) from error
        yield


@contextmanager
def undisturbed() -> Iterator[None]:
    """Within the block, gradients are computed as usual, whatever modes the calling thread has set.

    These are grad mode, inference mode, autocast and the default device, which belong to the thread alone.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        yield


def fastest_precision(device: torch.device) -> Precision:
    """The fastest precision that reaches the accuracy of float32 within noise on this device."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp32"
    # Without AMX tiles, the float32 blocks of csrc, which multiply a quarter as often (Winograd), are faster than
    # PyTorch's bfloat16 convolutions, with AVX512-BF16 too.
    return "bf16" if device.type == "cpu" and torch.cpu._is_amx_tile_supported() else "fp32"


@contextmanager
def precision_context(
    precision: Precision | None, device: torch.device, *, deterministic: bool = False
) -> Iterator[torch.dtype]:
    """Make PyTorch compute in `precision` on `device` within the block, whatever is set outside; gives the dtype.

    deterministic: cuDNN uses repeatable algorithms only, and does not try which is fastest.
    """
    if precision == "tf32" and device.type != "cuda":
        raise FastDMError("precision 'tf32' needs a GPU; on this device use 'fp32' or 'bf16'")
    float32 = "tf32" if precision == "tf32" else "ieee"
    backends = cast(Any, torch.backends)
    if device.type == "cuda":
        wanted = [
            (backends.cudnn, "enabled", True),
            (backends.cudnn, "benchmark", not deterministic),
            (backends.cudnn, "deterministic", deterministic),
            (backends.cuda.matmul, "fp32_precision", float32),
            (backends.cudnn.conv, "fp32_precision", float32),
        ]
    else:  # oneDNN computes float32 in bfloat16 where a program allows it.
        wanted = [(backend, "fp32_precision", float32) for backend in (backends.mkldnn.matmul, backends.mkldnn.conv)]
    with ExitStack() as before:
        for module, name, value in wanted:
            if (current := getattr(module, name)) != value:
                before.callback(setattr, module, name, current)
                setattr(module, name, value)
        yield torch.bfloat16 if precision == "bf16" else torch.float32


def free_memory(device: torch.device | None = None) -> int:
    """Bytes that this process can still take on `device`; without one, of the machine's memory.

    On a GPU: what no process has taken, and what PyTorch's allocator keeps without using it. On a CPU: what is left of
    the machine's memory without swapping, of every control group that the process is in, and of its address space
    (ulimit -v, ulimit -d).
    """
    if device is not None and device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    groups = _group_memory(Path("/proc/self/cgroup"), CGROUPS)
    return max(0, min([_machine_memory(), *groups, *_limit_memory()]))


def resident_memory() -> int:
    """Bytes of this process that are in memory now, with the pages of files that it has mapped; 0 where the system does
    not show it."""
    try:
        fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines())
        return int(fields["VmRSS"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return 0


def processes_here() -> int:
    """Processes of this job that share this machine's memory: what PyTorch's launcher says, else 1."""
    number = os.environ.get("LOCAL_WORLD_SIZE", "1")
    return max(1, int(number)) if number.isdecimal() else 1


def _machine_memory() -> int:
    try:
        fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines())
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _group_memory(membership: Path, root: Path) -> Iterator[int]:
    """What is left in each of the control groups round the process that have a limit (version 1 or 2, nested).

    File pages that were not used lately do not count as taken: the kernel gives them up first.
    """
    try:
        lines = [line.split(":", 2) for line in membership.read_text(encoding="utf-8").splitlines()]
    except OSError:
        return
    for _, controllers, path in lines:
        if controllers == "":
            top, limit, usage, cache = root, "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            top, limit, usage = root / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            cache = "total_inactive_file"
        else:
            continue
        inner = top / path.lstrip("/")
        # In a container the path may be the host's, of which only the container's own group is shown.
        for group in (inner, *inner.parents):
            if group == top.parent:
                break
            try:
                most, used = ((group / name).read_text(encoding="utf-8").strip() for name in (limit, usage))
                statistics = dict(
                    line.split() for line in (group / "memory.stat").read_text(encoding="utf-8").splitlines()
                )
            except (OSError, ValueError):
                continue
            if most != "max":
                yield int(most) - int(used) + int(statistics.get(cache, 0))


def _limit_memory() -> Iterator[int]:
    """What is left of the process's address space and data segment, where they are limited."""
    try:
        fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines())
    except (OSError, ValueError):
        return
    for limit, used in ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData")):
        soft, _ = resource.getrlimit(limit)
        if soft != resource.RLIM_INFINITY:
            yield soft - int(fields[used].split()[0]) * 1024
