"""Read ahead: images gathered into a ring of buffers in the background, while the batch before is in use."""

import contextlib
import math
import os
import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fastdm.errors import FastDMError

Gather = Callable[[Tensor, Tensor], object]
"""Writes the images of a CPU index, int64 of any shape, into a tensor uint8 [*index.shape, C, H, W] in memory."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Some rows of one of the indices.

    item: the number of the index. rows: which of its rows these are.
    images: uint8 [rows, …, C, H, W], in a buffer that is reused once the next batch is requested.
    """

    item: int
    rows: slice
    images: Tensor


def prefetch(
    gather: Gather,
    image_shape: tuple[int, ...],
    indices: Iterable[Tensor],
    *,
    depth: int,
    device: torch.device,
    most_bytes: int | None = None,
) -> Generator[Batch, None, None]:
    """Gather the images of `indices`, in their order, ahead of their use.

    gather: called in a background thread. image_shape: (C, H, W).
    indices: CPU tensors, int64 [n] or [classes, n]; iterated in the background, a few items ahead.
    depth: number of batches in memory at a time, the one in use included.
    device: where the images are wanted. On CUDA they are copied from pinned memory on a stream of their own.
    most_bytes: cut every index into batches of whole rows that hold at most this much, though at least one row.

    An exception of `indices` or of `gather` is raised where the next batch is requested. Leaving the loop, `close()`
    and an exception in the loop end the background thread. A fork of the process cannot continue the iteration.
    """
    if depth < 2 or (most_bytes is not None and most_bytes < 1):
        raise FastDMError(f"depth is {depth} and most_bytes {most_bytes}; they must be at least 2 and 1")
    return _Ring(gather, image_shape, most_bytes, depth, device).batches(iter(indices))


class _Buffer:
    """A buffer of the ring, and on CUDA its twin on the device with the events that order the work on both."""

    def __init__(self, device: torch.device) -> None:
        self.on_cuda = device.type == "cuda"
        self.device = device
        self.host = self.twin = torch.empty(0, dtype=torch.uint8, device="cpu")
        if self.on_cuda:
            self.copied, self.released = torch.cuda.Event(), torch.cuda.Event()

    def grow(self, size: int, copies: "torch.cuda.Stream | None") -> None:
        if self.host.numel() >= size:
            return
        if copies is None:
            self.host = self.twin = torch.empty(size, dtype=torch.uint8, device="cpu")
            return
        self.released.synchronize()
        self.host = torch.empty(size, dtype=torch.uint8, device="cpu", pin_memory=True)
        # On the stream that writes it: memory of another stream could still be in use by work queued there.
        with torch.cuda.stream(copies):
            self.twin = torch.empty(size, dtype=torch.uint8, device=self.device)


class _Stopped(Exception):
    """The consumer has left."""


class _Ring:
    """Buffers that travel between a producer thread, which fills them, and the consumer, which gives them back."""

    def __init__(
        self, gather: Gather, image_shape: tuple[int, ...], most_bytes: int | None, depth: int, device: torch.device
    ) -> None:
        self._gather = gather
        self._image_shape = image_shape
        self._most_bytes = most_bytes
        self._device = device
        self._free: queue.SimpleQueue[_Buffer | None] = queue.SimpleQueue()
        self._ready: queue.SimpleQueue[tuple[_Buffer, Batch] | BaseException | None] = queue.SimpleQueue()
        for _ in range(depth):
            self._free.put(_Buffer(device))

    def batches(self, indices: Iterator[Tensor]) -> Generator[Batch, None, None]:
        producer = threading.Thread(target=self._produce, args=(indices,), name="fastdm-prefetch", daemon=True)
        owner = os.getpid()
        try:
            producer.start()  # in here, so that a signal just afterwards ends the thread too
            while True:
                if os.getpid() != owner:
                    raise FastDMError("a stream cannot be used in a fork of the process that opened it; open one there")
                answer = self._ready.get()
                if answer is None:
                    return
                if isinstance(answer, BaseException):
                    raise answer
                buffer, batch = answer
                if buffer.on_cuda:
                    torch.cuda.current_stream(self._device).wait_event(buffer.copied)
                yield batch
                if buffer.on_cuda:
                    buffer.released.record(torch.cuda.current_stream(self._device))
                self._free.put(buffer)
        finally:
            if os.getpid() == owner:
                self._stop(producer)

    def _stop(self, producer: threading.Thread) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                self._free.get_nowait()
        self._free.put(None)
        if producer.is_alive():  # not where a signal came before it had started
            producer.join()
        if self._device.type == "cuda":  # nothing may still use the buffers when they are given back
            torch.cuda.synchronize(self._device)

    def _produce(self, indices: Iterator[Tensor]) -> None:
        try:
            on_cuda = self._device.type == "cuda"
            # A thread starts on the first device; pinned memory and twins belong to this one.
            with contextlib.suppress(_Stopped), torch.cuda.device(self._device if on_cuda else -1):
                copies = torch.cuda.Stream() if on_cuda else None
                for item, index in enumerate(indices):
                    for rows in self._row_ranges(index):
                        buffer = self._free.get()
                        if buffer is None:
                            raise _Stopped
                        self._ready.put((buffer, Batch(item, rows, self._fill(buffer, index[rows], copies))))
            self._ready.put(None)
        except BaseException as error:
            self._ready.put(error)

    def _row_ranges(self, index: Tensor) -> Iterator[slice]:
        if index.ndim not in (1, 2) or index.dtype != torch.int64 or index.device.type != "cpu":
            raise FastDMError(
                f"an index to prefetch is {index.dtype} {list(index.shape)} on {index.device}; it must be int64 [n] or "
                "[classes, n] on the CPU"
            )
        rows = max(1, len(index))
        if self._most_bytes is not None:
            rows = max(1, self._most_bytes // max(1, math.prod((*index.shape[1:], *self._image_shape))))
        for start in range(0, max(1, len(index)), rows):  # of an empty index, one empty batch
            yield slice(start, min(start + rows, len(index)))

    def _fill(self, buffer: _Buffer, index: Tensor, copies: "torch.cuda.Stream | None") -> Tensor:
        shape = (*index.shape, *self._image_shape)
        size = math.prod(shape)
        if copies is not None:
            buffer.copied.synchronize()  # the copy that read this buffer last
        buffer.grow(size, copies)
        host = buffer.host[:size].view(shape)
        self._gather(index, host)
        if copies is None:
            return host
        twin = buffer.twin[:size].view(shape)
        with torch.cuda.stream(copies):
            copies.wait_event(buffer.released)  # the work that used the batch in it last
            twin.copy_(host, non_blocking=True)
            buffer.copied.record(copies)
        return twin
