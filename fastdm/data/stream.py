"""Batches of a pool that does not fit on the device, gathered while the batch before is in use."""

import contextlib
import os
import queue
import threading
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fastdm.data.pool import Pool
from fastdm.errors import FastDMError


@dataclass(frozen=True, eq=False)
class Chunk:
    """Some rows of one item of the plan.

    item: its number in the plan. rows: which of its rows these are.
    images: uint8 [rows, n, C, H, W], in a buffer that is used again once the next chunk is asked for.
    """

    item: int
    rows: slice
    images: Tensor


def stream(
    pool: Pool, plan: Iterable[Tensor], chunk_bytes: int, depth: int, device: torch.device
) -> Generator[Chunk, None, None]:
    """Gather what the plan asks for, in its order, ahead of its use.

    plan: items are CPU indices, int64 [classes, n], such as ``pool.draw`` gives; it is iterated in the background, a
        few items ahead. Every item is cut into chunks of whole rows.
    chunk_bytes: the most that a chunk holds, though at least one row. depth: how many chunks there are at a time; the
        one in use is one of them. depth · chunk_bytes of memory is used, once more on a CUDA device.
    device: where the images are wanted. On CUDA the copies run on a stream of their own, from pinned memory.

    An exception of the plan, or while reading, is raised where the next chunk is asked for. Leaving the loop,
    ``close()`` and an exception in the loop end the background thread. A fork of the process cannot go on
    with the stream.
    """
    if chunk_bytes < 1 or depth < 2:
        raise FastDMError(f"chunk_bytes is {chunk_bytes} and depth {depth}; they must be at least 1 and 2")
    return _chunks(pool, iter(plan), chunk_bytes, depth, device)


class _Slot:
    """A buffer of the ring, and on CUDA its twin on the device with what orders the work on both."""

    def __init__(self, device: torch.device) -> None:
        self.on_cuda = device.type == "cuda"
        self.device = device
        self.host = self.twin = torch.empty(0, dtype=torch.uint8)
        if self.on_cuda:
            self.copied, self.released = torch.cuda.Event(), torch.cuda.Event()

    def grow(self, size: int) -> None:
        if self.host.numel() < size:
            if self.on_cuda:
                self.released.synchronize()
            self.host = torch.empty(size, dtype=torch.uint8, pin_memory=self.on_cuda)
            self.twin = torch.empty(size, dtype=torch.uint8, device=self.device) if self.on_cuda else self.host


class _Stopped(Exception):
    """The consumer has left."""


def _chunks(
    pool: Pool, plan: Iterator[Tensor], chunk_bytes: int, depth: int, device: torch.device
) -> Generator[Chunk, None, None]:
    free: queue.SimpleQueue[_Slot | None] = queue.SimpleQueue()
    ready: queue.SimpleQueue[tuple[_Slot, Chunk] | BaseException | None] = queue.SimpleQueue()
    for _ in range(depth):
        free.put(_Slot(device))
    producer = threading.Thread(
        target=_produce, args=(pool, plan, chunk_bytes, device, free, ready), name="fastdm-stream", daemon=True
    )
    owner = os.getpid()
    producer.start()
    try:
        while True:
            if os.getpid() != owner:
                raise FastDMError("a stream cannot be used in a fork of the process that opened it; open one there")
            answer = ready.get()
            if answer is None:
                return
            if isinstance(answer, BaseException):
                raise answer
            slot, chunk = answer
            if slot.on_cuda:
                torch.cuda.current_stream(device).wait_event(slot.copied)
            yield chunk
            if slot.on_cuda:
                slot.released.record(torch.cuda.current_stream(device))
            free.put(slot)
    finally:
        if os.getpid() == owner:
            with contextlib.suppress(queue.Empty):
                while True:
                    free.get_nowait()
            free.put(None)
            producer.join()
            if device.type == "cuda":  # nothing may still use the buffers when they are given back
                torch.cuda.synchronize(device)


def _produce(
    pool: Pool,
    plan: Iterator[Tensor],
    chunk_bytes: int,
    device: torch.device,
    free: "queue.SimpleQueue[_Slot | None]",
    ready: "queue.SimpleQueue[tuple[_Slot, Chunk] | BaseException | None]",
) -> None:
    try:
        with contextlib.suppress(_Stopped):
            copies = torch.cuda.Stream(device) if device.type == "cuda" else None
            for item, index in enumerate(plan):
                for rows in _row_chunks(pool, index, chunk_bytes):
                    slot = free.get()
                    if slot is None:
                        raise _Stopped
                    ready.put((slot, Chunk(item, rows, _fill(slot, pool, index[rows], copies))))
        ready.put(None)
    except BaseException as error:
        ready.put(error)


def _row_chunks(pool: Pool, index: Tensor, chunk_bytes: int) -> Iterator[slice]:
    if index.ndim != 2 or index.dtype != torch.int64 or index.device.type != "cpu":
        raise FastDMError(
            f"an item of a plan is {index.dtype} {list(index.shape)} on {index.device}; it must be an int64 index "
            "[classes, n] on the CPU"
        )
    row_bytes = index.shape[1] * pool.images[:1].numel()
    rows = max(1, chunk_bytes // max(1, row_bytes))
    for start in range(0, len(index), rows):
        yield slice(start, min(start + rows, len(index)))


def _fill(slot: _Slot, pool: Pool, index: Tensor, copies: "torch.cuda.Stream | None") -> Tensor:
    shape = (*index.shape, *pool.images.shape[1:])
    size = shape[0] * shape[1] * pool.images[:1].numel()
    if copies is not None:
        slot.copied.synchronize()  # the copy that read this buffer last
    slot.grow(size)
    host = slot.host[:size].view(shape)
    pool.gather(index, out=host)
    if copies is None:
        return host
    twin = slot.twin[:size].view(shape)
    with torch.cuda.stream(copies):
        copies.wait_event(slot.released)  # the work that used the chunk in it last
        twin.copy_(host, non_blocking=True)
        slot.copied.record(copies)
    return twin
