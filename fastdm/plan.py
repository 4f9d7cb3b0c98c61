"""How much goes through the network at once, and what memory that takes: decided before the first iteration."""

import math
import os
from bisect import bisect_right
from copy import deepcopy
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fastdm.errors import FastDMError
from fastdm.kernels import native
from fastdm.networks import Block, Network

CACHE_BYTES = 16 << 20
"""On a CPU, the largest activation of one pass. It then stays in the cache, and below glibc's 32 MiB threshold above
which every allocation is mapped afresh, one page fault per 4 KiB."""

FREE_SHARE = 0.8
"""Share of the free memory that a plan may take when no budget is given."""


@dataclass(frozen=True)
class Activations:
    """Bytes that one image needs on its way through a network.

    total: of all layers' results together, which autograd keeps; peak: of the largest result and its input; largest: of
    the largest single result.
    """

    total: int
    peak: int
    largest: int


class _CountBytes(TorchDispatchMode):
    """Adds up the bytes of what every op returns."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.results: list[int] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            in_place = any(tensor is argument for argument in args)
            if isinstance(tensor, Tensor) and not (tensor._is_view() or in_place):
                self.results.append(tensor.numel() * tensor.element_size())
        return result


def activations(network: Network, image_shape: tuple[int, int, int], dtype: torch.dtype) -> Activations:
    """Count on the meta device, which computes nothing. Two images are sent, since BatchNorm refuses one."""
    network = deepcopy(network).to("meta", dtype)
    images = torch.empty(2, *image_shape, dtype=dtype, device="meta")
    with torch.no_grad(), _CountBytes() as count:
        network.embed(images)
    image = math.prod(image_shape) * dtype.itemsize
    sizes = [image, *(size // 2 for size in count.results)]
    pairs = [before + after for before, after in pairwise(sizes)]
    return Activations(total=sum(sizes), peak=max(pairs, default=image), largest=max(sizes))


@dataclass(frozen=True)
class Plan:
    """chunk_classes: classes per forward and backward pass; slice_images: real images that go through the network at
    once; the rest is bytes: of the pool, of the synthetic images with their momentum and gradient, and of one chunk."""

    chunk_classes: int
    slice_images: int
    pool_bytes: int
    images_bytes: int
    real_bytes: int
    synthetic_bytes: int
    budget_bytes: int

    def __str__(self) -> str:
        return (
            f"plan: pool {_size(self.pool_bytes)}, synthetic images with momentum and gradient "
            f"{_size(self.images_bytes)}; {self.chunk_classes} classes at a time: real {_size(self.real_bytes)}, "
            f"synthetic {_size(self.synthetic_bytes)} of a budget of {_size(self.budget_bytes)}"
        )


def make_plan(
    network: Network,
    *,
    image_shape: tuple[int, int, int],
    num_classes: int,
    ipc: int,
    batch_real: int,
    pool_bytes: int,
    dtype: torch.dtype,
    device: torch.device,
    chunk_memory: int | None = None,
) -> Plan:
    """Choose the chunk: as many classes as the budget holds, and on a CPU no more than its cache.

    batch_real: real images per class; chunk_memory: bytes that one chunk may take, by default what is free.
    A network with BatchNorm takes its statistics over all classes together, so that its only chunk holds all of them.
    Raises FastDMError if the budget does not hold one class, and says how many real images would fit.
    """
    per_image = activations(network, image_shape, dtype)
    image = math.prod(image_shape) * dtype.itemsize
    joint = any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    in_cache = synthetic_in_cache = None  # Images that go through a layer without leaving it.
    if device.type == "cpu" and not joint:
        synthetic_in_cache = max(1, CACHE_BYTES // per_image.largest)
        # Without gradient, a block that is one op stores only what is pooled.
        example = torch.empty(0, dtype=dtype, device=device)
        pooled = all(
            isinstance(layer, Block) and native.can_convolve(example, layer.conv.weight) for layer in network.features
        )
        in_cache = 4 * synthetic_in_cache if pooled else synthetic_in_cache

    def bytes_of(classes: int, batch: int = batch_real) -> tuple[int, int]:
        """Bytes of the real and of the synthetic pass of so many classes, with `batch` real images each."""
        real_images = classes * batch
        real = real_images * image + min(in_cache or real_images, real_images) * per_image.peak
        return real, classes * ipc * 2 * per_image.total

    images_bytes = 3 * num_classes * ipc * math.prod(image_shape) * 4
    budget = chunk_memory if chunk_memory is not None else int(FREE_SHARE * free_memory(device)) - images_bytes
    needed = num_classes if joint else 1
    if sum(bytes_of(needed)) > budget:
        what = "all classes together (the network has BatchNorm)" if joint else "one class"
        fits = bisect_right(range(batch_real), budget, key=lambda batch: sum(bytes_of(needed, batch))) - 1
        remedy = f"batch_real of at most {fits} would fit" if fits > 0 else f"{ipc} images per class do not fit"
        raise FastDMError(
            f"{what} needs {_size(sum(bytes_of(needed)))}, but a chunk may take {_size(max(budget, 0))}: {remedy}"
        )
    chunk = num_classes
    while chunk > needed and sum(bytes_of(chunk)) > budget:
        chunk = max(needed, min(chunk - 1, int(chunk * budget / sum(bytes_of(chunk)))))
    if synthetic_in_cache is not None:
        chunk = min(chunk, max(1, synthetic_in_cache // ipc))
    real, synthetic = bytes_of(chunk)
    return Plan(chunk, in_cache or chunk * batch_real, pool_bytes, images_bytes, real, synthetic, budget)


def free_memory(device: torch.device) -> int:
    """Bytes that can still be taken on the device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        with open("/proc/meminfo") as file:
            available = next(line for line in file if line.startswith("MemAvailable:"))
        return int(available.split()[1]) * 1024
    except (OSError, StopIteration):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _size(count: int) -> str:
    """Bytes as people read them."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            break
        size /= 1024
    return f"{size:.0f} {unit}" if unit in ("B", "KiB") else f"{size:.1f} {unit}"
