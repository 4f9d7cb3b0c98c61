"""Counter-based random numbers, and the draws of weights, augmentations and images, as Triton kernels."""

import math
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import launch, table
from ..numerics import DRAW_STREAM, PART, WEIGHT_ROW

STREAM: tl.constexpr = tl.constexpr(DRAW_STREAM)
FIELDS: tl.constexpr = tl.constexpr(PART)
ROW: tl.constexpr = tl.constexpr(WEIGHT_ROW)
COLUMNS: tl.constexpr = tl.constexpr(table.COLUMNS)
ROTATE_COS: tl.constexpr = tl.constexpr(table.ROTATE_COS)
ROTATE_SIN: tl.constexpr = tl.constexpr(table.ROTATE_SIN)
_WARPS = 4
_BLOCK = 1024
_ROWS = 32
"""Rows of a table that a program draws."""
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
def uniform_value(seed, step, row, stream, j):
    """Return value j of a row of `uniform`."""
    # 24 bits are exact in float32, in int32 too.
    return (_word(seed, step, row, stream, j) >> 8).to(tl.int32).to(tl.float32) * (1.0 / 16777216.0)


@triton.jit
def uniform_kernel(key_ptr, rows_ptr, out_ptr, n, stream_id, BLOCK: tl.constexpr):
    row = tl.load(rows_ptr + tl.program_id(0))
    j = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    values = uniform_value(tl.load(key_ptr), tl.load(key_ptr + 1), row, stream_id, j)
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
def uniform_weights_kernel(key_ptr, layout_ptr, bounds_ptr, out_ptr, stream_id, BLOCK: tl.constexpr):
    part_ptr = layout_ptr + tl.program_id(1) * FIELDS
    first = tl.load(part_ptr + 1)
    outer = tl.load(part_ptr + 2)
    channels = tl.load(part_ptr + 3)
    pixels = tl.load(part_ptr + 4)
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = i < outer * channels * pixels
    vector = i // channels
    number = first + (vector // pixels * channels + i % channels) * pixels + vector % pixels
    values = uniform_value(tl.load(key_ptr), tl.load(key_ptr + 1), number // ROW, stream_id, number % ROW)
    values = (values - 0.5) * (2 * tl.load(bounds_ptr + tl.program_id(1)))
    tl.store(out_ptr + tl.load(part_ptr) + i, values.to(out_ptr.dtype.element_ty), mask=mask)


@cache
def _on_device(layout: tuple[int, ...], bounds: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Kept for good, because a recorded graph reads them, and bringing them to a GPU would make the host wait."""
    return (
        torch.tensor(layout, dtype=torch.int32, device=device),
        torch.tensor(bounds, dtype=torch.float32, device=device),
    )


def uniform_weights(out: Tensor, key: Tensor, layout: list[int], bounds: list[float], stream: int) -> None:
    sizes = [math.prod(layout[part + 2 : part + PART]) for part in range(0, len(layout), PART)]
    parts, limits = _on_device(tuple(layout), tuple(bounds), out.device)
    launch.start(
        uniform_weights_kernel,
        (triton.cdiv(max(sizes), _BLOCK), len(sizes)),
        key_ptr=key.contiguous(),
        layout_ptr=parts,
        bounds_ptr=limits,
        out_ptr=out,
        stream_id=stream,
        BLOCK=_BLOCK,
        num_warps=_WARPS,
    )


@triton.jit
def draw_tables_kernel(
    key_ptr,
    rows_ptr,
    source_ptr,
    rules_ptr,
    out_ptr,
    n_rows,
    runs,
    stream_id,
    CHOOSE: tl.constexpr,
    ONE_FAMILY: tl.constexpr,
    ROWS: tl.constexpr,
):
    seed = tl.load(key_ptr)
    step = tl.load(key_ptr + 1)
    g = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    row = tl.load(rows_ptr + g, mask=g < n_rows, other=0)[:, None]
    column = tl.arange(0, COLUMNS)[None, :]
    rules_ptr += column  # the rows of `table.RULES`
    u = uniform_value(seed, step, row, stream_id, tl.load(source_ptr + column)) * tl.load(rules_ptr + COLUMNS)
    whole = tl.minimum(tl.floor(u), tl.load(rules_ptr + 2 * COLUMNS)) + tl.load(rules_ptr + 3 * COLUMNS)
    number = tl.where(tl.load(rules_ptr) != 0, whole, u)
    value = (number - tl.load(rules_ptr + 4 * COLUMNS)) * tl.load(rules_ptr + 5 * COLUMNS)
    value += tl.load(rules_ptr + 6 * COLUMNS)
    value = tl.minimum(tl.maximum(value, tl.load(rules_ptr + 7 * COLUMNS)), tl.load(rules_ptr + 8 * COLUMNS))
    value = tl.where(column == ROTATE_COS, tl.cos(value), tl.where(column == ROTATE_SIN, tl.sin(value), value))
    run = tl.load(rules_ptr + 9 * COLUMNS)
    identity = tl.load(rules_ptr + 10 * COLUMNS)

    out_ptr += g[:, None] * COLUMNS + column
    mask = (g < n_rows)[:, None] & (column < COLUMNS)
    if CHOOSE:
        chooser = tl.load(rows_ptr) + row * 0 if ONE_FAMILY else row
        choice = tl.floor(uniform_value(seed, step, chooser, stream_id, column * 0) * runs)
        choice = tl.minimum(choice, tl.cast(runs - 1, tl.float32))
        tl.store(out_ptr, tl.where(run == choice, value, identity), mask=mask)
    else:
        for r in range(runs):
            table_ptr = out_ptr + tl.cast(r, tl.int64) * n_rows * COLUMNS
            tl.store(table_ptr, tl.where(run == tl.cast(r, tl.float32), value, identity), mask=mask)


def draw_tables(
    key: Tensor,
    rows: Tensor,
    source: Tensor,
    rules: Tensor,
    numbers: int,
    runs: int,
    choose: bool,
    one_family: bool,
    stream: int,
) -> Tensor:
    n = rows.shape[0]
    out = launch.empty((1 if choose else runs, n, source.shape[0]), torch.float32, key.device)
    launch.start(
        draw_tables_kernel,
        (triton.cdiv(n, _ROWS),),
        key_ptr=key.contiguous(),
        rows_ptr=rows.contiguous(),
        source_ptr=source.contiguous(),
        rules_ptr=rules.contiguous(),
        out_ptr=out,
        n_rows=n,
        runs=runs,
        stream_id=stream,
        CHOOSE=choose,
        ONE_FAMILY=one_family,
        ROWS=_ROWS,
        num_warps=_WARPS,
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
        WIDE=min(32, _MOST_DRAWN // block),  # All pairs that are compared at a time are in registers.
        ROUNDS=(n - 1).bit_length() if n else 0,
        num_warps=min(16, max(1, block // 32)),
    )
    return out
