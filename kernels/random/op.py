"""`uniform` and `draw`: checks, schemas."""

import torch
from torch import Tensor

from ..checks import check_index_values, check_offsets, check_tensor
from ..dispatch import define


def uniform(key: Tensor, rows: Tensor, n: int, stream: int) -> Tensor:
    """Return uniform random numbers that depend on nothing but their coordinates.

    Value j of row r is (philox4x32-10(key, (step, r, stream, j // 4))[j % 4] >> 8) · 2⁻²⁴, with the two halves of the
    seed as the key: the same bits in every implementation.

    key: int64 [2], (seed, step), on the device of the result; a CUDA graph that is replayed after step was increased
        in place draws anew.
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
    _check_key(key)
    check_tensor("rows", rows, 1, torch.int64, key.device)
    if not 0 <= stream < 2**32:
        raise ValueError(f"stream is {stream}; it must be within 0 to 2**32 - 1")
    if n < 0:
        raise ValueError(f"n is {n}; it must not be negative")
    out: Tensor = torch.ops.fastdm.uniform(key, rows, n, stream)
    return out


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
    _check_key(key)
    check_offsets("class_offsets", class_offsets, key.device)
    if n < 0:
        raise ValueError(f"n is {n}; it must not be negative")
    if classes is None:
        classes = torch.arange(class_offsets.shape[0] - 1, device=key.device)
    check_tensor("classes", classes, 1, torch.int64, key.device)
    out: Tensor = torch.ops.fastdm.draw(key, class_offsets, n, classes, replace)
    return out


def _check_key(key: Tensor) -> None:
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


@define("draw", "(Tensor key, Tensor class_offsets, SymInt n, Tensor classes, bool replace) -> Tensor", _check_values)
def _(key: Tensor, class_offsets: Tensor, n: int, classes: Tensor, replace: bool) -> Tensor:
    return torch.empty((classes.shape[0], n), dtype=torch.int64, device=key.device)
