"""`uniform` and what is drawn through it: `uniform_weights`, `draw_tables` and `draw`; checks, schemas."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..checks import check_floating_point, check_index_values, check_offsets, check_tensor
from ..dispatch import define, run
from ..numerics import PART
from ..table import COLUMNS, RULES


def uniform(key: Tensor, rows: Tensor, n: int, stream: int) -> Tensor:
    """Return uniform random numbers that depend on nothing but their coordinates.

    Value j of row r is (philox4x32-10(key, (step, r, stream, j // 4))[j % 4] >> 8) · 2⁻²⁴, with the two halves of the
    seed as the key: the same bits in every implementation.

    key: int64 [2], (seed, step), on the device of the result, of the step the lower 32 bits; a CUDA graph that is
        replayed after step was increased in place draws anew.
    rows: int64 [G], values below 2³².
    n: values per row.
    stream: separates uses, 0 ≤ stream < 2³².

    Returns float32 [G, n] in [0, 1). Raises TypeError for a wrong dtype, ValueError for wrong shapes, devices, n and
    stream.

    >>> import torch
    >>> from fastdm.kernels import uniform
    >>> key = torch.tensor([7, 0])
    >>> both, second = uniform(key, torch.tensor([0, 1]), 3, 9), uniform(key, torch.tensor([1]), 3, 9)
    >>> torch.equal(both[1], second[0])
    True
    """
    check_key(key)
    check_tensor("rows", rows, 1, torch.int64, key.device)
    check_stream(stream)
    if n < 0:
        raise ValueError(f"n is {n}; it must not be negative")
    out: Tensor = run("uniform", key, rows, n, stream)
    return out


def uniform_weights(
    out: Tensor, key: Tensor, layout: Sequence[Sequence[int]], bounds: Sequence[float], stream: int
) -> None:
    """Draw the initial weights of a network's layers, which lie in one buffer, in one launch.

    A weight is (u − ½) · 2 · bound, of number i = first, first + 1, … of `uniform(key, rows, 4096, stream)` read row
    after row: what is drawn does not depend on how it lies in memory.

    out: floating point, contiguous; it is written in place, in its dtype after float32 arithmetic.
    key: int64 [2], as for `uniform`.
    layout: (start, first, outer, channels, pixels) of each layer, in the order of `first`. Weight [o, c, p] of [outer,
        channels, pixels] is number first + (o · channels + c) · pixels + p, and lies at start + (o · pixels + p) ·
        channels + c: a convolution's in channels-last order, or any other's as it is, with one channel.
    bounds: of each layer.

    Raises TypeError for a wrong dtype, ValueError for wrong shapes and devices, and for parts outside the buffer.

    >>> import torch
    >>> from fastdm.kernels import uniform, uniform_weights
    >>> key, out = torch.tensor([7, 0]), torch.zeros(6)
    >>> uniform_weights(out, key, [(0, 0, 1, 3, 2)], [0.5], 3)
    >>> torch.equal(out.view(2, 3).T.flatten(), uniform(key, torch.tensor([0]), 6, 3)[0] - 0.5)
    True
    """
    check_tensor("out", out, 1, None, key.device)
    check_floating_point("out", out)
    check_key(key)
    check_stream(stream)
    if len(layout) != len(bounds) or not layout:
        raise ValueError(f"there are {len(layout)} parts in the layout and {len(bounds)} bounds; give one for each")
    for start, first, outer, channels, pixels in layout:
        if min(start, first, outer, channels, pixels) < 0 or start + outer * channels * pixels > len(out):
            raise ValueError(
                f"the part {start, first, outer, channels, pixels} of the layout does not fit into {len(out)} elements"
            )
    if not out.is_contiguous() or len(out) >= 2**31:
        raise ValueError("out must be contiguous, and shorter than 2**31")
    torch.ops.fastdm.uniform_weights(out, key, [number for part in layout for number in part], list(bounds), stream)


def draw(key: Tensor, class_offsets: Tensor, n: int, classes: Tensor | None = None, *, replace: bool = False) -> Tensor:
    """Draw n distinct images of each class, every subset of n being equally likely (Floyd's algorithm).

    For i = 0 … n − 1, with m images in the class and w_i the philox word i of the row "class" in stream 1: the image
    t = (w_i · (m − n + i + 1)) >> 32 is taken, or m − n + i if t was taken before. With `replace` images may repeat:
    (w_i · m) >> 32 is taken whatever was taken before.

    key: int64 [2], (seed, step), as for `uniform`.
    class_offsets: int64 [classes + 1]; the images of class c are `class_offsets[c]` to `class_offsets[c + 1]`.
    n: images per class. A smaller class (with `replace` an empty one) is a ValueError on the CPU, a row of −1 on a
        GPU.
    classes: int64, the classes to draw from; None means all.

    Returns int64 [len(classes), n]: pool indices, ascending in every row. Raises TypeError for a wrong dtype,
    ValueError for wrong shapes, devices and n, and for what is drawn from too small a class.

    >>> import torch
    >>> from fastdm.kernels import draw
    >>> draw(torch.tensor([7, 0]), torch.tensor([0, 2, 5]), 2)[0]  # the whole of the first class
    tensor([0, 1])
    """
    check_key(key)
    check_offsets("class_offsets", class_offsets, key.device)
    if n < 0:
        raise ValueError(f"n is {n}; it must not be negative")
    if classes is None:
        classes = torch.arange(class_offsets.shape[0] - 1, device=key.device)
    check_tensor("classes", classes, 1, torch.int64, key.device)
    out: Tensor = run("draw", key, class_offsets, n, classes, replace)
    return out


def draw_tables(
    key: Tensor,
    rows: Tensor,
    source: Tensor,
    rules: Tensor,
    *,
    numbers: int,
    runs: int,
    choose: bool,
    one_family: bool = False,
    stream: int,
) -> Tensor:
    """Draw the parameters of `dsa`, from the key and the number of each row alone, in one launch.

    Column c of row g comes from the uniform number u = `uniform(key, rows, numbers, stream)[g, source[c]]` as
    `fastdm.kernels.table.Rules` says. A column with a run of its own holds its identity value in the tables of others.

    key: int64 [2], (seed, step), as for `uniform`; rows: int64 [G], what distinguishes the rows.
    source: int64 [16], below `numbers`; rules: float32 [11, 16], whose rows are `fastdm.kernels.table.RULES`.
    runs: number of runs. choose: draw one run for each row, min(floor(runs · u[g, 0]), runs − 1), rather than a table
        for every run; one_family: that of the first row for all of them.

    Returns float32 [runs, G, 16], or [1, G, 16] if one run is chosen: on a GPU the same up to two units in the last
    place, for cosine, sine, and products that are added without rounding. Raises TypeError for a wrong dtype,
    ValueError for wrong shapes and devices.

    >>> import torch
    >>> from fastdm.augmentation import Strategy
    >>> (rows,) = Strategy.parse("flip").draw(torch.tensor([0, 1]), torch.arange(4), (8, 8))  # calls draw_tables
    >>> rows.shape
    torch.Size([4, 16])
    """
    check_key(key)
    check_stream(stream)
    check_tensor("rows", rows, 1, torch.int64, key.device)
    check_tensor("source", source, 1, torch.int64, key.device)
    check_tensor("rules", rules, 2, torch.float32, key.device)
    if len(source) != COLUMNS or rules.shape != (len(RULES), COLUMNS):
        raise ValueError(
            f"source and rules have the shapes {tuple(source.shape)} and {tuple(rules.shape)}; they must be "
            f"[{COLUMNS}] and [{len(RULES)}, {COLUMNS}]"
        )
    if runs < 1 or numbers < 1:
        raise ValueError(f"runs is {runs} and numbers {numbers}; they must be at least 1")
    tables: Tensor = run("draw_tables", key, rows, source, rules, numbers, runs, choose, one_family, stream)
    return tables


def check_stream(stream: int) -> None:
    if not 0 <= stream < 2**32:
        raise ValueError(f"stream is {stream}; it must be within 0 to 2**32 - 1")


def check_key(key: Tensor) -> None:
    check_tensor("key", key, 1, torch.int64)
    if key.shape[0] != 2:
        raise ValueError(f"key has {key.shape[0]} entries; it must be (seed, step)")


def _check_values(key: Tensor, class_offsets: Tensor, n: int, classes: Tensor, replace: bool) -> None:
    check_index_values("classes", classes, len(class_offsets) - 1)
    sizes = class_offsets.diff()[classes]
    if len(sizes) and int(sizes.min()) < (min(n, 1) if replace else n):
        label, size = int(classes[sizes.argmin()]), int(sizes.min())
        what = "draw fewer, or with replace=True" if size else "there is nothing to draw from"
        raise ValueError(f"class {label} has {size} images, but {n} are to be drawn: {what}")


@define("uniform", "(Tensor key, Tensor rows, SymInt n, int stream) -> Tensor")
def _(key: Tensor, rows: Tensor, n: int, stream: int) -> Tensor:
    return torch.empty((rows.shape[0], n), dtype=torch.float32, device=key.device)


@define("uniform_weights", "(Tensor(a!) out, Tensor key, int[] layout, float[] bounds, int stream) -> ()")
def _(out: Tensor, key: Tensor, layout: list[int], bounds: list[float], stream: int) -> None:
    assert len(layout) == PART * len(bounds)


@define(
    "draw",
    "(Tensor key, Tensor class_offsets, SymInt n, Tensor classes, bool replace) -> Tensor",
    _check_values,
    native_checks=True,
)
def _(key: Tensor, class_offsets: Tensor, n: int, classes: Tensor, replace: bool) -> Tensor:
    return torch.empty((classes.shape[0], n), dtype=torch.int64, device=key.device)


@define(
    "draw_tables",
    "(Tensor key, Tensor rows, Tensor source, Tensor rules, int numbers, int runs, bool choose, bool one_family,"
    " int stream) -> Tensor",
    lambda key, rows, source, rules, numbers, *_: check_index_values("source", source, numbers),
)
def _(
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
    return rules.new_empty(1 if choose else runs, rows.shape[0], COLUMNS)
