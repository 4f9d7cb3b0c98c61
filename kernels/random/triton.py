"""Counter-based random numbers and the draws of images as Triton kernels."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import launch
from ..numerics import DRAW_STREAM

STREAM: tl.constexpr = tl.constexpr(DRAW_STREAM)
_WARPS = 4
_BLOCK = 1024
_MOST_DRAWN = 8192
"""Images of a class that one program can draw; its sort spills beyond 16 per thread."""


@triton.jit
def _word(seed, step, row, stream, j):
    """Return word j of a row, as uint32: Philox 4×32-10 on the counter (step, row, stream, j // 4)."""
    a, b, c, d = tl.philox(
        seed, step.to(tl.uint32), row.to(tl.uint32), tl.cast(stream, tl.uint32), (j // 4).to(tl.uint32)
    )
    lane = j % 4
    return tl.where(lane == 0, a, tl.where(lane == 1, b, tl.where(lane == 2, c, d)))


@triton.jit
def uniform_kernel(key_ptr, rows_ptr, out_ptr, n, stream_id, BLOCK: tl.constexpr):
    row = tl.load(rows_ptr + tl.program_id(0))
    j = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    words = _word(tl.load(key_ptr), tl.load(key_ptr + 1), row, stream_id, j)
    # 24 bits are exact in float32, in int32 too.
    values = (words >> 8).to(tl.int32).to(tl.float32) * (1.0 / 16777216.0)
    tl.store(out_ptr + tl.program_id(0).to(tl.int64) * n + j, values, mask=j < n)


def _block(n: int) -> tuple[int, int]:
    """Return how many of a row's n values a program makes, and its warps."""
    block = min(_BLOCK, triton.next_power_of_2(max(n, 1)))
    return block, 1 if block <= 64 else _WARPS


def uniform(key: Tensor, rows: Tensor, n: int, stream: int) -> Tensor:
    out = launch.empty((rows.shape[0], n), torch.float32, key.device)
    block, warps = _block(n)
    launch.start(
        uniform_kernel,
        (rows.shape[0], triton.cdiv(n, block)),
        key_ptr=key.contiguous(),
        rows_ptr=rows.contiguous(),
        out_ptr=out,
        n=n,
        stream_id=stream,  # Triton's launcher takes `stream` for itself.
        BLOCK=block,
        num_warps=warps,
    )
    return out


@triton.jit
def _class_of(class_offsets_ptr, classes_ptr, n_classes, program):
    """Return the class that a program draws from, its first image, its size, and whether there is such a class."""
    label = tl.load(classes_ptr + program)
    known = (label >= 0) & (label < n_classes)
    label = tl.where(known, label, 0)
    start = tl.load(class_offsets_ptr + label)
    return label, start, tl.load(class_offsets_ptr + label + 1) - start, known


@triton.jit
def _candidate(seed, step, label, i, spare):
    """Return Floyd's candidate i: an integer within 0 to spare + i."""
    word = _word(seed, step, label, STREAM, i)
    return ((word.to(tl.uint64) * (spare + i + 1).to(tl.uint64)) >> 32).to(tl.int32)


@triton.jit
def draw_kernel(
    key_ptr,
    class_offsets_ptr,
    classes_ptr,
    out_ptr,
    n_classes,
    n,
    BLOCK: tl.constexpr,
    WIDE: tl.constexpr,
    ROUNDS: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    label, start, size, known = _class_of(class_offsets_ptr, classes_ptr, n_classes, program)
    spare = size.to(tl.int32) - n
    known &= spare >= 0
    spare = tl.maximum(spare, 0)
    seed = tl.load(key_ptr)
    step = tl.load(key_ptr + 1)

    i = tl.arange(0, BLOCK)
    candidate = _candidate(seed, step, label, i, spare)
    # A candidate is replaced by spare + i if an earlier one has its value ...
    replaced = tl.zeros((BLOCK,), tl.int32)
    for earlier in range(0, n, WIDE):
        k = earlier + tl.arange(0, WIDE)
        same = candidate[:, None] == _candidate(seed, step, label, k, spare)[None, :]
        same &= k[None, :] < i[:, None]
        replaced |= tl.max(same.to(tl.int32), 1)
    # ... or if it is the replacement of candidate - spare, and that one was replaced: pointer jumping along the chain.
    link = candidate - spare
    link = tl.where((candidate >= spare) & (link < i), link, i)
    for _ in tl.static_range(ROUNDS):
        replaced |= tl.gather(replaced, link, 0)
        link = tl.gather(link, link, 0)
    taken = tl.where(replaced != 0, spare + i, candidate)
    taken = tl.sort(tl.where(i < n, taken, 2147483647))
    taken = tl.where(known, start + taken, -1)
    tl.store(out_ptr + program * n + i, taken, mask=i < n)


@triton.jit
def draw_with_repeats_kernel(key_ptr, class_offsets_ptr, classes_ptr, out_ptr, n_classes, n, BLOCK: tl.constexpr):
    program = tl.program_id(0).to(tl.int64)
    label, start, size, known = _class_of(class_offsets_ptr, classes_ptr, n_classes, program)
    known &= size > 0
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    word = _word(tl.load(key_ptr), tl.load(key_ptr + 1), label, STREAM, i)
    taken = start + ((word.to(tl.uint64) * size.to(tl.uint64)) >> 32).to(tl.int64)
    tl.store(out_ptr + program * n + i, tl.where(known, taken, -1), mask=i < n)


def _draw_with_repeats(key: Tensor, class_offsets: Tensor, n: int, classes: Tensor) -> Tensor:
    out = launch.empty((classes.shape[0], n), torch.int64, key.device)
    block, warps = _block(n)
    launch.start(
        draw_with_repeats_kernel,
        (classes.shape[0], triton.cdiv(n, block)),
        key_ptr=key.contiguous(),
        class_offsets_ptr=class_offsets.contiguous(),
        classes_ptr=classes.contiguous(),
        out_ptr=out,
        n_classes=class_offsets.shape[0] - 1,
        n=n,
        BLOCK=block,
        num_warps=warps,
    )
    return out.sort(dim=1).values


def draw(key: Tensor, class_offsets: Tensor, n: int, classes: Tensor, replace: bool = False) -> Tensor:
    if replace:
        return _draw_with_repeats(key, class_offsets, n, classes)
    if n > _MOST_DRAWN:
        raise ValueError(f"{n} images per class are to be drawn on a GPU; draw at most {_MOST_DRAWN} at once")
    out = launch.empty((classes.shape[0], n), torch.int64, key.device)
    block = max(16, triton.next_power_of_2(n))
    launch.start(
        draw_kernel,
        (classes.shape[0] if n else 0,),
        key_ptr=key.contiguous(),
        class_offsets_ptr=class_offsets.contiguous(),
        classes_ptr=classes.contiguous(),
        out_ptr=out,
        n_classes=class_offsets.shape[0] - 1,
        n=n,
        BLOCK=block,
        WIDE=min(16, _MOST_DRAWN // block),  # All pairs that are compared at a time are in registers.
        ROUNDS=(n - 1).bit_length() if n else 0,
        num_warps=min(16, max(1, block // 64)),
    )
    return out
