"""The real images of every iteration: drawn afresh for each class, resident on the device or read ahead."""

import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Literal

import torch
from torch import Tensor

from fastdm.data.pool import Pool
from fastdm.data.prefetch import Batch
from fastdm.kernels import draw

Residence = Literal["in place", "copied", "streamed"]
"""How real images come to the device: the pool is there, the pool is copied there, or every batch is read ahead."""

MOST_WAITS = 4096
"""Waits of a GPU of which both ends are kept, until somebody asks how long they took."""

DEPTH = 3
"""Batches that are in memory at a time when they are read ahead: one in use, two on their way."""


@dataclass(frozen=True)
class RealBatch:
    """Real images, uint8: rows `index` (int64) of `images` [M, C, H, W]; all of them, in order, without an index."""

    images: Tensor
    index: Tensor | None = None

    def rows(self, rows: slice) -> "RealBatch":
        """Some of the images."""
        if self.index is None:
            return RealBatch(self.images[rows])
        return RealBatch(self.images, self.index[rows])


class ClassSampler:
    """Draws `batch_real` images of each class without replacement, or all of a smaller class.

    counts: images of each class in the batch, int64 [classes], on the CPU.
    """

    def __init__(self, pool: Pool, batch_real: int, device: torch.device) -> None:
        self.counts = pool.class_sizes.clamp(max=batch_real)
        self._class_offsets = pool.numbered_offsets.to(device)
        labels = torch.repeat_interleave(torch.arange(len(self.counts)), self.counts)
        # One call of `draw` for all classes of one count; as a rule there is one count.
        self._calls = [
            (size, (pool.first_class + classes).to(device), torch.isin(labels, classes).nonzero().squeeze(1).to(device))
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
    """Real images from a pool that lies on the device: a batch is an index into it, drawn there.

    key: int64 [2], (seed, iteration), on the device: every batch follows its present value.
    """

    waited = 0.0
    """Seconds that were spent waiting for images: they are there."""

    def __init__(self, pool: Pool, batch_real: int, key: Tensor) -> None:
        self._images = pool.images
        self._key = key
        self._sampler = ClassSampler(pool, batch_real, key.device)
        self.counts = self._sampler.counts

    def begin(self, iteration: int) -> None:
        """Nothing to prepare: the key says which iteration it is."""

    def batches(self, parts: Sequence[slice]) -> Iterator[RealBatch]:
        """The images of each part of the iteration's real images (a range of them)."""
        index = self._sampler(self._key)
        for part in parts:
            yield RealBatch(self._images, index[part])

    def close(self) -> None:
        """Nothing is held."""


class _Waits:
    """Seconds that the computation waits within `with` blocks: the process on a CPU; on a GPU the stream, which may
    still be busy while the process waits, and wait for a copy when the process goes on."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._seconds = self._start = 0.0
        self._events: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque(maxlen=MOST_WAITS)

    def __enter__(self) -> None:
        if self._device.type == "cuda":
            self._before = self._event()
        else:
            self._start = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        if self._device.type == "cuda":
            self._events.append((self._before, self._event()))
        else:
            self._seconds += time.perf_counter() - self._start

    def _event(self) -> "torch.cuda.Event":
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def seconds(self) -> float:
        """Seconds of all blocks so far; on a GPU, for which this waits, of at most `MOST_WAITS` since the last call."""
        for before, after in self._events:
            after.synchronize()
            self._seconds += before.elapsed_time(after) / 1000
        self._events.clear()
        return self._seconds


class StreamedImages:
    """Real images read from disk or memory ahead of their use, across iterations, in the background.

    counts: images of each class in an iteration, int64 [classes], on the CPU.
    """

    def __init__(self, pool: Pool, batch_real: int, seed: int, device: torch.device) -> None:
        self._pool = pool
        self._seed = seed
        self._sampler = ClassSampler(pool, batch_real, torch.device("cpu"))
        self.counts = self._sampler.counts
        self._device = device
        self._ahead: Generator[Batch, None, None] | None = None
        self._iteration = 0
        self._next: int | None = None  # the iteration that is read ahead, once all of the one before it was used
        self._waits = _Waits(device)

    @property
    def waited(self) -> float:
        """Seconds for which the computation had nothing to do but wait for images that were not there yet."""
        return self._waits.seconds()

    def begin(self, iteration: int) -> None:
        """The next batches are those of this iteration; what was read ahead of another is dropped."""
        if iteration != self._next:
            self.close()
        self._iteration, self._next = iteration, None

    def batches(self, parts: Sequence[slice]) -> Iterator[RealBatch]:
        """As in `ResidentImages`; the images are valid until the next part is requested."""
        if self._ahead is None:
            indices = self._indices(parts, self._iteration)
            self._ahead = self._pool.stream(indices, None, depth=DEPTH, device=self._device)
        for _ in parts:
            with self._waits:
                images = next(self._ahead).images
            yield RealBatch(images)
        self._next = self._iteration + 1

    def _indices(self, parts: Sequence[slice], first: int) -> Iterator[Tensor]:
        for iteration in count(first):
            index = self._sampler(torch.tensor([self._seed, iteration]))
            for part in parts:
                yield index[part]

    def close(self) -> None:
        """End the background thread."""
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None


def possible_residences(pool: Pool, device: torch.device, free: int) -> tuple[Residence, ...]:
    """How the images of `pool` can come to `device`, which has `free` bytes left, the best first.

    A pool that lies there serves as it is, however little is free, unless it is a file. Any other is copied if half of
    the free memory holds it, and else read ahead.
    """
    if pool.images.device == device:
        return ("in place",) if pool.backing is None else ("streamed",)
    return ("copied", "streamed") if pool.images.numel() <= free // 2 else ("streamed",)


def real_images(
    pool: Pool, residence: Residence, batch_real: int, seed: int, key: Tensor
) -> ResidentImages | StreamedImages:
    """The real images of a condensation on the device of `key`, int64 [2], whose present value is (seed, iteration)."""
    if residence == "streamed":
        return StreamedImages(pool, batch_real, seed, key.device)
    return ResidentImages(pool.to(key.device), batch_real, key)
