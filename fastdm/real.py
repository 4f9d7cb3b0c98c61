"""The real images of every iteration: drawn anew for each class, from a pool on the device or from a stream."""

from collections.abc import Generator, Iterator, Sequence
from itertools import count

import torch
from torch import Tensor

from fastdm.data.pool import Pool
from fastdm.data.stream import Chunk
from fastdm.kernels import draw
from fastdm.plan import free_memory

STREAM_DEPTH = 3
"""Batches that a stream holds at a time: one in use, two on their way."""


class RealDraws:
    """Draws `batch_real` images of each class without replacement, or all of a smaller class.

    counts: images of each class in the batch, int64 [classes], on the CPU.
    """

    def __init__(self, class_offsets: Tensor, batch_real: int, device: torch.device) -> None:
        self.counts = class_offsets.diff().clamp(max=batch_real)
        self._class_offsets = class_offsets.to(device)
        labels = torch.repeat_interleave(torch.arange(len(self.counts)), self.counts)
        # One call of `draw` for all classes of one count; as a rule there is one count.
        self._calls = [
            (size, classes.to(device), torch.isin(labels, classes).nonzero().squeeze(1).to(device))
            for size in self.counts.unique().tolist()
            if size > 0
            for classes in [(self.counts == size).nonzero().squeeze(1)]
        ]

    def __call__(self, key: Tensor) -> Tensor:
        """int64 [sum of counts]: rows of the pool, class-sorted, for the key (seed, iteration)."""
        if len(self._calls) == 1:
            size, classes, _ = self._calls[0]
            return draw(key, self._class_offsets, size, classes).flatten()
        index = torch.empty(int(self.counts.sum()), dtype=torch.int64, device=key.device)
        for size, classes, positions in self._calls:
            index[positions] = draw(key, self._class_offsets, size, classes).flatten()
        return index


class ResidentImages:
    """Real images from a pool that lies on the device: the batch is an index into it."""

    def __init__(self, pool: Pool, batch_real: int, device: torch.device) -> None:
        self._images = pool.images
        self._draws = RealDraws(pool.class_offsets, batch_real, device)

    def batches(self, parts: Sequence[slice], key: Tensor, _: int) -> Iterator[tuple[Tensor, Tensor | None]]:
        """For each part of the batch (a range of its images): uint8 images [M, C, H, W] and which of their rows."""
        index = self._draws(key)
        for part in parts:
            yield self._images, index[part]

    def close(self) -> None:
        """Nothing is held."""


class StreamedImages:
    """Real images read from disk or memory ahead of their use, across iterations, in the background."""

    def __init__(self, pool: Pool, batch_real: int, device: torch.device) -> None:
        self._pool = pool
        self._draws = RealDraws(pool.class_offsets, batch_real, torch.device("cpu"))
        self._device = device
        self._stream: Generator[Chunk, None, None] | None = None
        self._next_iteration = -1

    def batches(self, parts: Sequence[slice], key: Tensor, iteration: int) -> Iterator[tuple[Tensor, Tensor | None]]:
        """As of `ResidentImages`, with exactly the part's images; valid until the next one is asked for."""
        if self._stream is None or iteration != self._next_iteration:
            self.close()
            plan = self._plan(parts, int(key[0]), iteration)
            self._stream = self._pool.stream(plan, depth=STREAM_DEPTH, device=self._device)
        self._next_iteration = iteration + 1
        for _ in parts:
            yield next(self._stream).images.squeeze(0), None

    def _plan(self, parts: Sequence[slice], seed: int, first: int) -> Iterator[Tensor]:
        for iteration in count(first):
            index = self._draws(torch.tensor([seed, iteration]))
            for part in parts:
                yield index[None, part]

    def close(self) -> None:
        """End the background thread."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None


def real_images(pool: Pool, batch_real: int, device: torch.device) -> ResidentImages | StreamedImages:
    """A pool in memory serves on a CPU as it is; a GPU gets a copy, if half of its free memory holds it; else, and for
    a packed file on a CPU, the images are streamed."""
    if device.type != "cpu" and pool.images.numel() <= free_memory(device) // 2:
        return ResidentImages(pool.to(device), batch_real, device)
    if device.type == "cpu" and pool.backing is None:
        return ResidentImages(pool, batch_real, device)
    return StreamedImages(pool, batch_real, device)
