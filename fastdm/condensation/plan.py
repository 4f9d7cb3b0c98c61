"""How much goes through the network at once, and what memory that takes: decided before the first iteration."""

from bisect import bisect_right
from dataclasses import dataclass, replace

import torch

from fastdm.data.batches import DEPTH, Residence, possible_residences
from fastdm.data.pool import Pool
from fastdm.errors import FastDMError
from fastdm.kernels import stores_only_pooled
from fastdm.networks.footprint import Activations, activations
from fastdm.networks.model import Block, Network
from fastdm.objectives import ObjectiveName, build_objective
from fastdm.objectives.objective import Objective
from fastdm.system.device import free_memory, processes_here
from fastdm.system.text import size_text

FREE_SHARE = 0.8
"""Share of the free memory that a plan may take when no budget is given; the rest is for what memory's fragments
waste."""

LIBRARY_BYTES = 1 << 30
"""On a GPU, what libraries take later: cuDNN's and cuBLAS's workspaces, and the code of kernels."""

MOST_ELEMENTS = 2**31 - 1
"""On a GPU, elements of a tensor that every convolution of cuDNN takes, since they count with 32 bits."""


_MOST_BYTES = 2**100
"""A budget that everything is below."""


@dataclass(frozen=True)
class MemoryPlan:
    """chunk_classes: classes per forward and backward pass; micro_batch: real images that go through the network at
    once; residence: how the real images come to the device.

    The rest is bytes: of the pool, of the synthetic images with their momentum, of the passes of one chunk (of real
    images, those that are read ahead included), which the budget bounds; and of what is there besides: real images
    that are read ahead, networks with the pool that they are drawn from, the recorded iteration of a GPU (copies of
    images and momentum, the numbers that parameters are drawn from), and its libraries.

    chunk_bytes: what a chunk is expected to take at its peak. The budget is for more: it counts every result of the
    synthetic images twice, and their pass and that of the real images as if they were at the same time.
    """

    chunk_classes: int
    micro_batch: int
    residence: Residence
    pool_bytes: int
    images_bytes: int
    real_bytes: int
    synthetic_bytes: int
    budget_bytes: int
    ahead_bytes: int = 0
    networks_bytes: int = 0
    graph_bytes: int = 0
    library_bytes: int = 0
    chunk_bytes: int = 0

    def __str__(self) -> str:
        return (
            f"plan: pool {size_text(self.pool_bytes)}, {self.residence}; synthetic images with momentum "
            f"{size_text(self.images_bytes)}; networks {size_text(self.networks_bytes)}; "
            f"{self.chunk_classes} classes at a time: real {size_text(self.real_bytes)}, "
            f"synthetic {size_text(self.synthetic_bytes)} of a budget of "
            f"{size_text(self.budget_bytes)}"
        )


@dataclass(frozen=True)
class _Needs:
    """What the passes of one chunk take.

    decoded: synthetic images per class as the network takes them; passes: networks that each goes through.
    micro_batch: the most real images that go through the network at once, None without a limit. pixels: bytes of an
    image as it is stored, image_bytes: as the network takes it. ahead: batches that are in memory at a time when real
    images are read ahead, else 0. objective: what is matched, of features [dimension].
    """

    per_image: Activations
    pixels: int
    image_bytes: int
    ahead: int
    batch_real: int
    decoded: int
    passes: int
    micro_batch: int | None
    objective: Objective
    dimension: int

    def real(self, classes: int) -> int:
        """Bytes of the pass of real images, without gradient: a layer's results replace those before them."""
        images = classes * self.batch_real
        at_once = min(self.micro_batch or images, images)
        return self.read_ahead(classes) + images * self.image_bytes + at_once * self.per_image.peak

    def read_ahead(self, classes: int) -> int:
        return classes * self.batch_real * self.ahead * self.pixels

    def synthetic(self, classes: int) -> int:
        """Bytes of the pass of synthetic images, of the objective, and of their backward pass."""
        return classes * self.decoded * 2 * self.passes * self.per_image.total + self.matching(classes)

    def matching(self, classes: int) -> int:
        return classes * self.objective.bytes(self.batch_real, self.decoded, self.dimension)

    def peak(self, classes: int) -> int:
        """Bytes that are expected at the same time: real images are done with when synthetic ones begin."""
        ahead = self.read_ahead(classes)
        synthetic = classes * self.decoded * self.passes * self.per_image.both_ways
        return ahead + max(self.real(classes) - ahead, synthetic + self.matching(classes))

    def total(self, classes: int) -> int:
        return self.real(classes) + self.synthetic(classes)


def make_plan(
    network: Network,
    pool: Pool,
    *,
    ipc: int,
    partition: int = 1,
    passes: int = 1,
    batch_real: int,
    objective: ObjectiveName = "mean",
    dtype: torch.dtype,
    device: torch.device,
    chunk_memory: int | None = None,
    networks_bytes: int = 0,
    free: int | None = None,
) -> MemoryPlan:
    """Choose how the real images come to the device, and the chunk: as many classes as the budget holds.

    partition: every synthetic image is partition² images for the network; passes: networks that they go through, with
    the cross-entropy 2; batch_real: real images per class; chunk_memory: bytes that one chunk may take, by default what
    is free. A chunk is no larger than suits the device (see `_Limits`). A network with BatchNorm takes its statistics
    over all classes together, so its only chunk holds all of them. networks_bytes: of the networks, which are there
    already. free: bytes that are left on the device, by default asked of it, of a CPU this process's
    share of the job's; with it, the device need not be there.
    Raises FastDMError if the budget does not hold one class, and says how many real images would fit.
    """
    channels, height, width = pool.images.shape[1:]
    pixels, decoded = channels * height * width, ipc * partition**2
    per_image = activations(network, (channels, height, width), dtype)
    limits = _limits(network, per_image, dtype, device)
    if device.type == "cpu" and _stores_only_pooled(network, dtype):
        per_image = replace(per_image, peak=per_image.between)
    images_bytes = 2 * pool.num_classes * ipc * pixels * 4
    if free is None:
        free = free_memory(device) // (processes_here() if device.type == "cpu" else 1)
    graph, libraries = _graph_bytes(network, images_bytes, device), 0 if device.type == "cpu" else LIBRARY_BYTES
    fewest = pool.num_classes if network.uses_batch_statistics else 1
    for residence in possible_residences(pool, device, free):
        ahead = DEPTH if residence == "streamed" else 0
        needs = _Needs(
            per_image,
            pixels,
            pixels * dtype.itemsize,
            ahead,
            batch_real,
            decoded,
            passes,
            limits.micro_batch,
            build_objective(objective),
            network.num_features,
        )
        copied = pool.images.numel() if residence == "copied" else 0
        left = int(FREE_SHARE * (free - copied - graph - libraries)) - images_bytes
        budget = left if chunk_memory is None else int(min(chunk_memory, _MOST_BYTES))
        if needs.total(fewest) <= budget:
            break
    else:
        raise _too_small(needs, fewest, budget, network.uses_batch_statistics)
    chunk = _most_classes(needs, max(fewest, limits.classes(decoded, batch_real, pool.num_classes)), fewest, budget)
    return MemoryPlan(
        chunk_classes=chunk,
        micro_batch=min(limits.micro_batch or chunk * batch_real, chunk * batch_real),
        residence=residence,
        pool_bytes=pool.images.numel(),
        images_bytes=images_bytes,
        real_bytes=needs.real(chunk),
        synthetic_bytes=needs.synthetic(chunk),
        budget_bytes=budget,
        ahead_bytes=needs.read_ahead(chunk),
        networks_bytes=networks_bytes,
        graph_bytes=graph if residence != "streamed" else 0,
        library_bytes=libraries,
        chunk_bytes=needs.peak(chunk),
    )


@dataclass(frozen=True)
class _Limits:
    """The most images that suit the device at once, None without a limit: synthetic ones, real ones of a chunk, and
    real ones that go through the network together.

    On a CPU those whose activations stay in its cache, where the real images of a chunk pass in parts. On a GPU those
    of which no activation has more than `MOST_ELEMENTS`: any chunk that large fills it. With BatchNorm there is no
    choice.
    """

    synthetic: int | None = None
    real: int | None = None
    micro_batch: int | None = None

    def classes(self, decoded: int, batch_real: int, num_classes: int) -> int:
        """The most classes of a chunk, at least 1."""
        pairs = ((self.synthetic, decoded), (self.real, batch_real))
        return min([num_classes, *(max(1, limit // each) for limit, each in pairs if limit is not None)])


def _limits(network: Network, per_image: Activations, dtype: torch.dtype, device: torch.device) -> _Limits:
    if network.uses_batch_statistics:
        return _Limits()
    if device.type == "cpu":
        in_cache = per_image.in_cache
        return _Limits(in_cache, None, 4 * in_cache if _stores_only_pooled(network, dtype) else in_cache)
    most = max(1, MOST_ELEMENTS * dtype.itemsize // per_image.largest)
    return _Limits(most, most, most)


def _graph_bytes(network: Network, images_bytes: int, device: torch.device) -> int:
    """What recording the iteration takes on a GPU: the numbers that parameters are drawn from, and copies of the images
    and their momentum."""
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return 0 if device.type == "cpu" else 2 * 4 * parameters + images_bytes


def _stores_only_pooled(network: Network, dtype: torch.dtype) -> bool:
    """Whether, on a CPU, every layer is a block that without gradient writes nothing but what it has pooled."""
    example = torch.empty(0, dtype=dtype)
    return all(
        isinstance(layer, Block) and stores_only_pooled(example, torch.empty(layer.conv.weight.shape))
        for layer in network.features
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
