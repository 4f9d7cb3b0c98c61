"""How much goes through the network at once, and what memory that takes: decided before the first iteration."""

import math
from bisect import bisect_right
from dataclasses import dataclass, replace

import torch

from fastdm.errors import FastDMError
from fastdm.kernels import stores_only_pooled
from fastdm.networks.footprint import Activations, activations, images_in_cache
from fastdm.networks.model import Block, Network
from fastdm.system.device import free_memory
from fastdm.system.text import size_text

FREE_SHARE = 0.8
"""Share of the free memory that a plan may take when no budget is given."""


@dataclass(frozen=True)
class MemoryPlan:
    """chunk_classes: classes per forward and backward pass; micro_batch: real images that go through the network at
    once; the rest is bytes: of the pool, of the synthetic images with their momentum and gradient, and of one chunk."""

    chunk_classes: int
    micro_batch: int
    pool_bytes: int
    images_bytes: int
    real_bytes: int
    synthetic_bytes: int
    budget_bytes: int

    def __str__(self) -> str:
        return (
            f"plan: pool {size_text(self.pool_bytes)}, synthetic images with momentum and gradient "
            f"{size_text(self.images_bytes)}; {self.chunk_classes} classes at a time: "
            f"real {size_text(self.real_bytes)}, synthetic {size_text(self.synthetic_bytes)} of a budget of "
            f"{size_text(self.budget_bytes)}"
        )


@dataclass(frozen=True)
class _Needs:
    """What the passes of one chunk take.

    decoded: synthetic images per class as the network takes them; passes: networks that each goes through.
    micro_batch: the most real images that go through the network at once, None without a limit.
    """

    per_image: Activations
    image_bytes: int
    batch_real: int
    decoded: int
    passes: int
    micro_batch: int | None

    def real(self, classes: int) -> int:
        """Bytes of the pass of real images, without gradient: a layer's results replace those before them."""
        images = classes * self.batch_real
        return images * self.image_bytes + min(self.micro_batch or images, images) * self.per_image.peak

    def synthetic(self, classes: int) -> int:
        """Bytes of the pass of synthetic images and its backward pass."""
        return classes * self.decoded * 2 * self.passes * self.per_image.total

    def total(self, classes: int) -> int:
        return self.real(classes) + self.synthetic(classes)


def make_plan(
    network: Network,
    *,
    image_shape: tuple[int, int, int],
    num_classes: int,
    ipc: int,
    partition: int = 1,
    passes: int = 1,
    batch_real: int,
    pool_bytes: int,
    dtype: torch.dtype,
    device: torch.device,
    chunk_memory: int | None = None,
) -> MemoryPlan:
    """Choose the chunk: as many classes as the budget holds, and on a CPU no more than its cache.

    partition: every synthetic image is partition² images for the network; passes: networks that they go through, with
    the cross-entropy 2; batch_real: real images per class; chunk_memory: bytes that one chunk may take, by default what
    is free. A network with BatchNorm takes its statistics over all classes together, so its only chunk holds all of
    them.
    Raises FastDMError if the budget does not hold one class, and says how many real images would fit.
    """
    in_cache = micro_batch = None
    if device.type == "cpu" and not network.uses_batch_statistics:
        in_cache = images_in_cache(network, image_shape, dtype)
        micro_batch = 4 * in_cache if _stores_only_pooled(network, dtype, device) else in_cache
    image, decoded = math.prod(image_shape), ipc * partition**2
    needs = _Needs(
        activations(network, image_shape, dtype), image * dtype.itemsize, batch_real, decoded, passes, micro_batch
    )
    images_bytes = 3 * num_classes * ipc * image * 4
    budget = chunk_memory if chunk_memory is not None else int(FREE_SHARE * free_memory(device)) - images_bytes

    fewest = num_classes if network.uses_batch_statistics else 1
    if needs.total(fewest) > budget:
        raise _too_small(needs, fewest, budget, network.uses_batch_statistics)
    chunk = _most_classes(needs, num_classes, fewest, budget)
    if in_cache is not None:
        chunk = min(chunk, max(1, in_cache // decoded))
    real, synthetic = needs.real(chunk), needs.synthetic(chunk)
    return MemoryPlan(chunk, micro_batch or chunk * batch_real, pool_bytes, images_bytes, real, synthetic, budget)


def _stores_only_pooled(network: Network, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether every layer is a block that, without gradient, writes nothing but what it has pooled."""
    example = torch.empty(0, dtype=dtype, device=device)
    return all(
        isinstance(layer, Block) and stores_only_pooled(example, layer.conv.weight) for layer in network.features
    )


def _most_classes(needs: _Needs, num_classes: int, fewest: int, budget: int) -> int:
    """The most classes, at least `fewest`, whose passes the budget holds."""
    chunk = num_classes
    while chunk > fewest and needs.total(chunk) > budget:
        chunk = max(fewest, min(chunk - 1, int(chunk * budget / needs.total(chunk))))
    return chunk


def _too_small(needs: _Needs, classes: int, budget: int, uses_batch_statistics: bool) -> FastDMError:
    """The error for a budget that does not hold `classes` classes."""
    what = "all classes together (the network has BatchNorm)" if uses_batch_statistics else "one class"
    batches = range(needs.batch_real)
    fits = bisect_right(batches, budget, key=lambda batch: replace(needs, batch_real=batch).total(classes)) - 1
    remedy = f"batch_real of at most {fits} would fit" if fits > 0 else f"{needs.decoded} images per class do not fit"
    return FastDMError(
        f"{what} needs {size_text(needs.total(classes))}, but a chunk may take {size_text(max(budget, 0))}: {remedy}"
    )
