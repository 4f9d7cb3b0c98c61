"""The public ops: they check their arguments, then dispatch through ``torch.library``. Never imports triton.

Each op is defined once, with a schema and a fake, and has up to three implementations that do not know of each other:
``reference.py`` (plain PyTorch), ``native.py`` (the C++ extension, on the CPU) and the ``*_triton.py`` files. Shapes,
dtypes and devices are checked in the public function. Values are checked inside the op, so that a compiled graph keeps
the check, and only on the CPU, where reading them costs no wait; on a GPU a row that cannot be computed becomes NaN
(images) or −1 (indices).
"""

import importlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import native, reference
from . import table as columns

Backend = Literal["auto", "triton", "reference"]

_TRITON_MODULES = {
    "dsa": "dsa_triton",
    "dsa_backward": "dsa_triton",
    "norm_relu_pool": "norm_relu_pool_triton",
    "norm_relu_pool_backward": "norm_relu_pool_triton",
    "norm_relu_pool_mean": "norm_relu_pool_triton",
    "class_mean_difference": "class_mean_triton",
    "class_mean_difference_backward": "class_mean_triton",
    "uniform": "random_triton",
    "draw": "random_triton",
}


# --- backends --------------------------------------------------------------------------------------------------------

_backend: Backend = "auto"  # Not a context variable: autograd runs the backward of GPU tensors in threads of its own.


@contextmanager
def use_backend(backend: Backend) -> Iterator[None]:
    """Choose the implementation of every op within the ``with`` block, in all threads.

    "auto": Triton for CUDA tensors (and for CPU tensors under ``TRITON_INTERPRET=1``) if it can be imported, else the
    C++ extension or plain PyTorch. "triton" or "reference": this one and no other.

    Raises RuntimeError if "triton" cannot be had here, ValueError for another name.
    """
    global _backend
    if backend not in ("auto", "triton", "reference"):
        raise ValueError(f"backend is {backend!r}; it must be 'auto', 'triton' or 'reference'")
    if backend == "triton":
        if problem := _triton_problem():
            raise RuntimeError(f"backend 'triton' cannot be had: {problem}")
        if not (_interpreted() or torch.cuda.is_available()):
            raise RuntimeError(
                "backend 'triton' cannot be had: there is no CUDA device; "
                "set TRITON_INTERPRET=1 before Python starts to interpret the kernels on the CPU, slowly"
            )
    before, _backend = _backend, backend
    try:
        yield
    finally:
        _backend = before


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


@cache
def _triton_problem() -> str:
    """Return why triton cannot be used, or an empty string."""
    try:
        importlib.import_module("triton")
    except ImportError as error:
        return f"triton cannot be imported ({error})"
    return ""


def _implementation(name: str, device: torch.device) -> Callable[..., Any]:
    can_launch = device.type == "cuda" or (device.type == "cpu" and _interpreted())
    if _backend == "triton" and not can_launch:
        raise RuntimeError(f"backend 'triton' was chosen, but the tensors are on {device}; move them to a CUDA device")
    if _backend == "triton" or (_backend == "auto" and can_launch and not _triton_problem()):
        module = importlib.import_module(f".{_TRITON_MODULES[name]}", __package__)
        return cast(Callable[..., Any], getattr(module, name))
    if _backend == "auto" and device.type == "cpu" and (function := native.find(name)):
        return function
    return cast(Callable[..., Any], getattr(reference, name))


# --- schemas ---------------------------------------------------------------------------------------------------------

_library = cast(Any, torch.library).Library("fastdm", "DEF")


def _define(name: str, schema: str, check: Callable[..., None] | None = None) -> Callable[[Callable[..., Any]], None]:
    """Define an op, register its implementations behind one dispatcher, and the decorated function as its fake.

    check: called with the op's arguments where its tensors are on the CPU.
    """

    def run(*args: Any) -> Any:
        device = next(a for a in args if isinstance(a, Tensor)).device
        if check is not None and device.type == "cpu":
            check(*args)
        return _implementation(name, device)(*args)

    def register_fake(fake: Callable[..., Any]) -> None:
        _library.define(f"{name}{schema}")
        for key in ("CPU", "CUDA"):
            _library.impl(name, run, key)
        torch.library.register_fake(f"fastdm::{name}", fake, lib=_library)

    return register_fake


def _format(channels_last: bool) -> torch.memory_format:
    return torch.channels_last if channels_last else torch.contiguous_format


def _check_range(name: str, index: Tensor | None, limit: int) -> None:
    if index is not None and len(index) and (int(index.min()) < 0 or int(index.max()) >= limit):
        raise ValueError(f"{name} holds {int(index.min())} to {int(index.max())}; it must stay within 0 to {limit - 1}")


def _check_table(table: Tensor, group: Tensor | None) -> None:
    _check_range("group", group, len(table))
    if not table.isfinite().all():
        raise ValueError("table holds a value that is not finite")
    x, y = table[:, columns.SCALE_X], table[:, columns.SCALE_Y]
    cos, sin = table[:, columns.ROTATE_COS], table[:, columns.ROTATE_SIN]
    if not ((x > 0) & (y > 0)).all():
        raise ValueError("table holds a scale that is not positive")
    if not ((cos * cos + sin * sin - 1).abs() <= columns.ROUNDING).all():
        raise ValueError("table holds a rotation whose ROTATE_COS and ROTATE_SIN are not those of an angle")
    enlargement = 1 / torch.minimum(x, y)
    row = int(enlargement.argmax()) if len(table) else 0
    if len(table) and float(enlargement[row]) > columns.MAX_ENLARGEMENT + columns.ROUNDING:
        raise ValueError(
            f"row {row} of table enlarges the picture {float(enlargement[row]):.3g} times, at most "
            f"{columns.MAX_ENLARGEMENT} can be followed backward: use a ratio_scale of at most 1.5"
        )


def _check_dsa(images: Tensor, table: Tensor, group: Tensor | None, index: Tensor | None, *_: Any) -> None:
    _check_range("index", index, len(images))
    _check_table(table, group)


@_define(
    "dsa",
    "(Tensor images, Tensor table, Tensor? group, Tensor? index, Tensor? mean, Tensor? std, ScalarType dtype,"
    " bool channels_last) -> Tensor",
    _check_dsa,
)
def _(
    images: Tensor,
    table: Tensor,
    group: Tensor | None,
    index: Tensor | None,
    mean: Tensor | None,
    std: Tensor | None,
    dtype: torch.dtype,
    channels_last: bool,
) -> Tensor:
    n = images.shape[0] if index is None else index.shape[0]
    shape = (n, *images.shape[1:])
    return torch.empty(shape, dtype=dtype, device=images.device, memory_format=_format(channels_last))


@_define(
    "dsa_backward",
    "(Tensor grad, Tensor table, Tensor? group, ScalarType dtype) -> Tensor",
    lambda grad, table, group, dtype: _check_table(table, group),
)
def _(grad: Tensor, table: Tensor, group: Tensor | None, dtype: torch.dtype) -> Tensor:
    return torch.empty(grad.shape, dtype=dtype, device=grad.device)


def _pooled(x: Tensor, pool: str) -> tuple[int, ...]:
    n, c, h, w = x.shape
    return (n, c, h, w) if pool == "none" else (n, c, h // 2, w // 2)


@_define(
    "norm_relu_pool",
    "(Tensor x, Tensor? weight, Tensor? bias, float eps, str activation, str pool) -> (Tensor, Tensor, Tensor)",
)
def _(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, activation: str, pool: str
) -> tuple[Tensor, Tensor, Tensor]:
    out = torch.empty(_pooled(x, pool), dtype=x.dtype, device=x.device, memory_format=reference.memory_format(x))
    statistics = x.new_empty(x.shape[:2], dtype=reference.working_dtype(x.dtype))
    return out, statistics, torch.empty_like(statistics)


@_define(
    "norm_relu_pool_backward",
    "(Tensor grad, Tensor x, Tensor mean, Tensor rstd, Tensor? weight, Tensor? bias, str activation, str pool)"
    " -> (Tensor, Tensor, Tensor)",
)
def _(grad: Tensor, x: Tensor, mean: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    grad_x = torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=reference.memory_format(x))
    return grad_x, mean.new_empty(x.shape[1]), mean.new_empty(x.shape[1])


def _check_offsets(name: str, offsets: Tensor, rows: int) -> None:
    if int(offsets[0]) != 0 or int(offsets[-1]) != rows or bool((offsets.diff() < 0).any()):
        raise ValueError(f"{name} must rise from 0 to the number of rows, {rows}; it is {offsets.tolist()[:8]}…")


@_define(
    "norm_relu_pool_mean",
    "(Tensor x, Tensor offsets, Tensor? weight, Tensor? bias, float eps, str activation, str pool) -> Tensor",
    lambda x, offsets, *_: _check_offsets("offsets", offsets, len(x)),
)
def _(
    x: Tensor, offsets: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, activation: str, pool: str
) -> Tensor:
    _, c, h, w = _pooled(x, pool)
    return x.new_empty((offsets.shape[0] - 1, c * h * w), dtype=reference.working_dtype(x.dtype))


@_define(
    "conv_norm_relu_pool",
    "(Tensor x, Tensor weight, int padding, float eps, bool keep) -> (Tensor, Tensor, Tensor, Tensor)",
)
def _(x: Tensor, weight: Tensor, padding: int, eps: float, keep: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    n, channels = len(x), len(weight)
    height, width = (size + 2 * padding - 2 for size in x.shape[2:])
    out, conv = (
        torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
        for shape in ((n, channels, height // 2, width // 2), (n if keep else 0, channels, height, width))
    )
    statistics = x.new_empty((n, channels), dtype=reference.working_dtype(x.dtype))
    return out, conv, statistics, torch.empty_like(statistics)


@_define(
    "conv_norm_relu_pool_backward",
    "(Tensor grad, Tensor conv, Tensor mean, Tensor rstd, Tensor weight, int padding) -> Tensor",
)
def _(grad: Tensor, conv: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor, padding: int) -> Tensor:
    height, width = (size + 2 - 2 * padding for size in conv.shape[2:])
    shape = (len(conv), weight.shape[1], height, width)
    return torch.empty(shape, dtype=conv.dtype, device=conv.device, memory_format=torch.channels_last)


def _check_difference(
    real: Tensor, synthetic: Tensor, real_offsets: Tensor, synthetic_offsets: Tensor, empty: str
) -> None:
    _check_offsets("real_offsets", real_offsets, len(real))
    _check_offsets("synthetic_offsets", synthetic_offsets, len(synthetic))
    if empty == "error":
        absent = (real_offsets.diff() == 0) | (synthetic_offsets.diff() == 0)
        if absent.any():
            raise ValueError(f"class {int(absent.nonzero()[0])} is empty; give it images, or choose empty='zero'")


@_define(
    "class_mean_difference",
    "(Tensor real, Tensor synthetic, Tensor real_offsets, Tensor synthetic_offsets, str empty) -> (Tensor, Tensor)",
    _check_difference,
)
def _(
    real: Tensor, synthetic: Tensor, real_offsets: Tensor, synthetic_offsets: Tensor, empty: str
) -> tuple[Tensor, Tensor]:
    work = reference.working_dtype(real.dtype)
    shape = (real_offsets.shape[0] - 1, real.shape[1])
    return real.new_empty((), dtype=work), real.new_empty(shape, dtype=work)


@_define(
    "class_mean_difference_backward",
    "(Tensor grad, Tensor difference, Tensor synthetic_offsets, SymInt rows, ScalarType dtype) -> Tensor",
)
def _(grad: Tensor, difference: Tensor, synthetic_offsets: Tensor, rows: int, dtype: torch.dtype) -> Tensor:
    return difference.new_empty((rows, difference.shape[1]), dtype=dtype)


@_define("uniform", "(Tensor key, Tensor rows, SymInt n, int stream) -> Tensor")
def _(key: Tensor, rows: Tensor, n: int, stream: int) -> Tensor:
    return torch.empty((rows.shape[0], n), dtype=torch.float32, device=key.device)


def _check_draw(key: Tensor, class_offsets: Tensor, n: int, classes: Tensor, replace: bool) -> None:
    _check_range("classes", classes, len(class_offsets) - 1)
    sizes = class_offsets.diff()[classes]
    if len(sizes) and int(sizes.min()) < (min(n, 1) if replace else n):
        label, size = int(classes[sizes.argmin()]), int(sizes.min())
        what = "draw fewer, or with replace=True" if size else "there is nothing to draw from"
        raise ValueError(f"class {label} has {size} images, but {n} are to be drawn: {what}")


@_define("draw", "(Tensor key, Tensor class_offsets, SymInt n, Tensor classes, bool replace) -> Tensor", _check_draw)
def _(key: Tensor, class_offsets: Tensor, n: int, classes: Tensor, replace: bool) -> Tensor:
    return torch.empty((classes.shape[0], n), dtype=torch.int64, device=key.device)


# --- public functions ------------------------------------------------------------------------------------------------


def dsa(
    images: Tensor,
    table: Tensor,
    group: Tensor | None = None,
    *,
    index: Tensor | None = None,
    mean: Tensor | Sequence[float] | None = None,
    std: Tensor | Sequence[float] | None = None,
    dtype: torch.dtype | None = None,
    channels_last: bool = False,
) -> Tensor:
    """Read, normalise and augment images in one pass (differentiable Siamese augmentation, Zhao & Bilen, 2021).

    The families act in the order color, crop, cutout, flip, scale, rotate, each with the parameters of its row of the
    table (``fastdm.kernels.table``), where a family that is not applied has its identity value. Pixels outside the
    image are 0 after normalisation. Scale and rotation sample bilinearly on the grid of ``affine_grid`` with
    ``align_corners=False``.

    images: floating point [M, C, H, W], already normalised, or uint8 [M, C, H, W] with ``mean`` and ``std``, of which
        a normalised pixel is (x / 255 − mean) / std. C is 1 or 3.
    table: float32 [G, 16]. A row may scale the picture up at most 1.5 times, and rotate it by any angle.
    group: int64 [N], the row of the table for each output image; None if G is N, or 1 for all images.
    index: int64 [N], the image to read for each output image; None reads all, in order, and N = M.
    mean, std: [C], for uint8 images only. Sequences are copied to the device at every call; tensors are not.
    dtype: of the result; None means float32 for uint8 images, else their own. The arithmetic is float32 (float64 for
        float64 images).
    channels_last: whether the result has that memory format.

    Returns [N, C, H, W]. Gradients flow to floating-point images, without index. Raises TypeError for a wrong dtype,
    ValueError for wrong shapes, devices and values.
    """
    _check_tensor("images", images, 4)
    _check_tensor("table", table, 2, torch.float32, images.device)
    n_images, c = images.shape[:2]
    if c not in (1, 3) or 0 in images.shape[2:]:
        raise ValueError(f"images have the shape {tuple(images.shape)}; it must be [M, 1 or 3, H, W]")
    if table.shape[1] != columns.COLUMNS:
        raise ValueError(f"table has {table.shape[1]} columns; it must have {columns.COLUMNS}")
    if images.dtype == torch.uint8:
        if mean is None or std is None:
            raise ValueError("uint8 images need mean and std, one value per channel")
        mean, std = (_per_channel(name, v, images) for name, v in (("mean", mean), ("std", std)))
    elif not images.dtype.is_floating_point:
        raise TypeError(f"images are {images.dtype}; they must be uint8 or floating point")
    elif mean is not None or std is not None:
        raise ValueError("mean and std belong to uint8 images; floating-point images must be normalised already")
    if index is not None:
        _check_tensor("index", index, 1, torch.int64, images.device)
        if images.requires_grad and torch.is_grad_enabled():
            raise ValueError("images that need a gradient cannot be read through index; index them before")
    n = n_images if index is None else index.shape[0]
    if group is not None:
        _check_tensor("group", group, 1, torch.int64, images.device)
        if group.shape[0] != n:
            raise ValueError(f"group has {group.shape[0]} entries for {n} images; it must have one for each")
    elif table.shape[0] not in (1, n):
        raise ValueError(f"table has {table.shape[0]} rows for {n} images; without group it must have 1 or {n}")
    if dtype is None:
        dtype = torch.float32 if images.dtype == torch.uint8 else images.dtype
    if not dtype.is_floating_point:
        raise TypeError(f"dtype is {dtype}; it must be floating point")
    if images.requires_grad and torch.is_grad_enabled():
        return cast(Tensor, _Dsa.apply(images, table, group, dtype, channels_last))
    return cast(Tensor, torch.ops.fastdm.dsa(images, table, group, index, mean, std, dtype, channels_last))


def norm_relu_pool(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    eps: float = 1e-5,
    activation: str = "relu",
    pool: str = "avg",
) -> Tensor:
    """Normalise every channel of every image, activate, and pool 2×2, in one pass.

    pool(activation((x − mean) / sqrt(variance + eps) · weight + bias)), with the mean and the biased variance of each
    (image, channel), the variance about the mean (two passes). An odd last row or column is not pooled.

    x: floating point [N, C, H, W], contiguous or channels-last.
    weight, bias: floating point [C], or None for 1 and 0.
    activation: "relu", "leakyrelu" (slope 0.01), "swish" or "sigmoid".
    pool: "avg", "max" or "none".

    Returns [N, C, H // 2, W // 2] ([N, C, H, W] without pooling), of the dtype and memory format of x; the arithmetic
    is float32 (float64 for float64). Gradients flow to x, weight and bias.
    """
    _check_norm_relu_pool(x, weight, bias, activation, pool)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias)):
        return cast(Tensor, _NormReluPool.apply(x, weight, bias, eps, activation, pool))
    return cast(Tensor, torch.ops.fastdm.norm_relu_pool(x, weight, bias, eps, activation, pool)[0])


def conv_norm_relu_pool(x: Tensor, weight: Tensor, *, padding: int = 1, eps: float = 1e-5) -> Tensor:
    """One block of a network that is never trained: 3×3 convolution without bias, then ``norm_relu_pool``.

    On a CPU with the C++ extension, float32 images go through the block one after the other without leaving the cache,
    through Winograd's F(4×4, 3×3) where there are many input channels; its rounding error is a few times that of the
    plain sum. Elsewhere this is ``conv2d`` and ``norm_relu_pool``.

    x: floating point [N, C, H, W]; weight: [K, C, 3, 3], of the same dtype; padding: zeros round the image.

    Returns [N, K, H' // 2, W' // 2] with H' = H + 2 · padding − 2. Gradients flow to x and weight; a weight that needs
    none is what makes the block fast.
    """
    _check_tensor("x", x, 4)
    _check_tensor("weight", weight, 4, x.dtype, x.device)
    if weight.shape[1:] != (x.shape[1], 3, 3):
        raise ValueError(f"weight has the shape {tuple(weight.shape)}; it must be [K, {x.shape[1]}, 3, 3]")
    if padding < 0 or min(x.shape[2:]) + 2 * padding < 4:
        raise ValueError(f"images of {x.shape[2]} by {x.shape[3]} pixels are too small with a padding of {padding}")
    fused = _backend == "auto" and not _interpreted() and native.can_convolve(x, weight)
    if not fused or (weight.requires_grad and torch.is_grad_enabled()):
        return norm_relu_pool(torch.conv2d(x, weight, padding=padding), eps=eps)
    if x.requires_grad and torch.is_grad_enabled():
        return cast(Tensor, _ConvNormReluPool.apply(x, weight, padding, eps))
    return cast(Tensor, torch.ops.fastdm.conv_norm_relu_pool(x, weight, padding, eps, False)[0])


def norm_relu_pool_mean(
    x: Tensor,
    offsets: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    eps: float = 1e-5,
    activation: str = "relu",
    pool: str = "avg",
) -> Tensor:
    """Return the class means of ``norm_relu_pool``'s output without writing that output.

    x: floating point [N, C, H, W], its rows sorted by class.
    offsets: int64 [classes + 1], rising from 0 to N; the rows of class c are ``offsets[c]`` to ``offsets[c + 1]``.
    Others: as for ``norm_relu_pool``.

    Returns float32 (float64 for float64) [classes, C · (H // 2) · (W // 2)], flattened in NCHW order; 0 for a class
    without rows. No gradient.
    """
    _check_norm_relu_pool(x, weight, bias, activation, pool)
    _check_offsets_tensor("offsets", offsets, x.device)
    with torch.no_grad():
        return cast(Tensor, torch.ops.fastdm.norm_relu_pool_mean(x, offsets, weight, bias, eps, activation, pool))


def class_mean_difference(
    real: Tensor, synthetic: Tensor, real_offsets: Tensor, synthetic_offsets: Tensor, *, empty: str = "zero"
) -> Tensor:
    """Return Σ_c ‖mean_i real[c, i] − mean_j synthetic[c, j]‖², the loss of distribution matching.

    real, synthetic: floating point [N, D] and [M, D], their rows sorted by class.
    real_offsets, synthetic_offsets: int64 [classes + 1], rising from 0 to N and M.
    empty: "zero": a class that has no rows on one side adds nothing. "error": ValueError (known on the CPU only).

    Returns a float32 scalar (float64 for float64), summed in a fixed order. The gradient flows to synthetic only.
    """
    for name, features in (("real", real), ("synthetic", synthetic)):
        _check_tensor(name, features, 2, None, real.device)
        if not features.dtype.is_floating_point:
            raise TypeError(f"{name} is {features.dtype}; it must be floating point")
    if real.shape[1] != synthetic.shape[1]:
        raise ValueError(f"real has {real.shape[1]} features and synthetic {synthetic.shape[1]}; they must agree")
    _check_offsets_tensor("real_offsets", real_offsets, real.device)
    _check_offsets_tensor("synthetic_offsets", synthetic_offsets, real.device)
    if real_offsets.shape != synthetic_offsets.shape:
        raise ValueError(f"there are {len(real_offsets)} real_offsets and {len(synthetic_offsets)} synthetic_offsets")
    if empty not in ("zero", "error"):
        raise ValueError(f"empty is {empty!r}; it must be 'zero' or 'error'")
    args = (real, synthetic, real_offsets, synthetic_offsets, empty)
    if synthetic.requires_grad and torch.is_grad_enabled():
        # Dynamo cannot trace an autograd function that gets one tensor twice: the sides may share theirs.
        args = (real.detach(), synthetic, real_offsets.detach(), synthetic_offsets, empty)
        return cast(Tensor, _ClassMeanDifference.apply(*args))
    with torch.no_grad():
        return cast(Tensor, torch.ops.fastdm.class_mean_difference(*args)[0])


def uniform(key: Tensor, rows: Tensor, n: int, stream: int) -> Tensor:
    """Return uniform random numbers that depend on nothing but their coordinates.

    Value j of row r is (philox4x32-10(key, (step, r, stream, j // 4))[j % 4] >> 8) · 2⁻²⁴, with the two halves of the
    seed as the key: the same bits in every implementation.

    key: int64 [2], (seed, step), on the device of the result; a CUDA graph that is replayed after step was increased
        in place draws anew.
    rows: int64 [G], values below 2³².
    n: values per row.
    stream: separates uses, 0 ≤ stream < 2³².

    Returns float32 [G, n] in [0, 1).
    """
    _check_tensor("key", key, 1, torch.int64)
    _check_tensor("rows", rows, 1, torch.int64, key.device)
    if key.shape[0] != 2:
        raise ValueError(f"key has {key.shape[0]} entries; it must be (seed, step)")
    if not 0 <= stream < 2**32:
        raise ValueError(f"stream is {stream}; it must be within 0 to 2**32 - 1")
    if n < 0:
        raise ValueError(f"n is {n}; it must not be negative")
    return cast(Tensor, torch.ops.fastdm.uniform(key, rows, n, stream))


def draw(key: Tensor, class_offsets: Tensor, n: int, classes: Tensor | None = None, *, replace: bool = False) -> Tensor:
    """Draw n distinct images of each class, every subset of n being equally likely (Floyd's algorithm).

    For i = 0 … n − 1, with m images in the class and w_i the philox word i of the row "class" in stream 1: the image
    t = (w_i · (m − n + i + 1)) >> 32 is taken, or m − n + i if t was taken before. With ``replace`` images may repeat:
    (w_i · m) >> 32 is taken whatever was taken before.

    key: int64 [2], (seed, step), as for ``uniform``.
    class_offsets: int64 [classes + 1]; the images of class c are ``class_offsets[c]`` to ``class_offsets[c + 1]``.
    n: images per class. A smaller class (with ``replace`` an empty one) is a ValueError on the CPU, a row of −1 on a
        GPU.
    classes: int64, the classes to draw from; None means all.

    Returns int64 [len(classes), n]: pool indices, ascending in every row.
    """
    _check_tensor("key", key, 1, torch.int64)
    if key.shape[0] != 2:
        raise ValueError(f"key has {key.shape[0]} entries; it must be (seed, step)")
    _check_offsets_tensor("class_offsets", class_offsets, key.device)
    if n < 0:
        raise ValueError(f"n is {n}; it must not be negative")
    if classes is None:
        classes = torch.arange(class_offsets.shape[0] - 1, device=key.device)
    _check_tensor("classes", classes, 1, torch.int64, key.device)
    return cast(Tensor, torch.ops.fastdm.draw(key, class_offsets, n, classes, replace))


# --- checks ----------------------------------------------------------------------------------------------------------


def _check_tensor(
    name: str, tensor: Tensor, dim: int, dtype: torch.dtype | None = None, device: torch.device | None = None
) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} is a {type(tensor).__name__}; it must be a tensor")
    if tensor.dim() != dim:
        raise ValueError(f"{name} has the shape {tuple(tensor.shape)}; it must have {dim} dimensions")
    if dtype is not None and tensor.dtype != dtype:
        raise TypeError(f"{name} is {tensor.dtype}; it must be {dtype}")
    if device is not None and tensor.device != device:
        raise ValueError(f"{name} is on {tensor.device}; it must be on {device}, like the other tensors")


def _per_channel(name: str, values: Tensor | Sequence[float], images: Tensor) -> Tensor:
    tensor = torch.as_tensor(values, dtype=torch.float32, device=images.device)
    if tensor.shape != images.shape[1:2]:
        raise ValueError(f"{name} has the shape {tuple(tensor.shape)}; it must hold {images.shape[1]} values")
    return tensor


def _check_offsets_tensor(name: str, offsets: Tensor, device: torch.device) -> None:
    _check_tensor(name, offsets, 1, torch.int64, device)
    if offsets.shape[0] < 2:
        raise ValueError(f"{name} has {offsets.shape[0]} entries; it must have one more than there are classes")


def _check_norm_relu_pool(x: Tensor, weight: Tensor | None, bias: Tensor | None, activation: str, pool: str) -> None:
    _check_tensor("x", x, 4)
    if not x.dtype.is_floating_point:
        raise TypeError(f"x is {x.dtype}; it must be floating point")
    for name, parameter in (("weight", weight), ("bias", bias)):
        if parameter is not None:
            _check_tensor(name, parameter, 1, None, x.device)
            if parameter.shape[0] != x.shape[1] or not parameter.dtype.is_floating_point:
                raise ValueError(f"{name} is {parameter.dtype} {tuple(parameter.shape)}; it must be [{x.shape[1]}]")
    if activation not in reference.ACTIVATIONS:
        raise ValueError(f"activation is {activation!r}; it must be one of {', '.join(reference.ACTIVATIONS)}")
    if pool not in reference.POOLS:
        raise ValueError(f"pool is {pool!r}; it must be one of {', '.join(reference.POOLS)}")
    if min(x.shape[2:]) < (1 if pool == "none" else 2):
        raise ValueError(f"x has images of {x.shape[2]} by {x.shape[3]} pixels; they are too small to pool")


# --- autograd --------------------------------------------------------------------------------------------------------


class _Dsa(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, images: Tensor, table: Tensor, group: Tensor | None, dtype: torch.dtype, channels_last: bool
    ) -> Tensor:
        ctx.save_for_backward(table, group)
        ctx.dtype = images.dtype
        return cast(Tensor, torch.ops.fastdm.dsa(images, table, group, None, None, None, dtype, channels_last))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        table, group = ctx.saved_tensors
        return torch.ops.fastdm.dsa_backward(grad, table, group, ctx.dtype), None, None, None, None


class _NormReluPool(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, activation: str, pool: str
    ) -> Tensor:
        out, mean, rstd = torch.ops.fastdm.norm_relu_pool(x, weight, bias, eps, activation, pool)
        ctx.save_for_backward(x, mean, rstd, weight, bias)
        ctx.activation, ctx.pool = activation, pool
        return cast(Tensor, out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, rstd, weight, bias = ctx.saved_tensors
        grad_x, grad_weight, grad_bias = torch.ops.fastdm.norm_relu_pool_backward(
            grad, x, mean, rstd, weight, bias, ctx.activation, ctx.pool
        )
        return (
            grad_x,
            None if weight is None else grad_weight.to(weight.dtype),
            None if bias is None else grad_bias.to(bias.dtype),
            None,
            None,
            None,
        )


class _ConvNormReluPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, padding: int, eps: float) -> Tensor:
        out, conv, mean, rstd = torch.ops.fastdm.conv_norm_relu_pool(x, weight, padding, eps, True)
        ctx.save_for_backward(conv, mean, rstd, weight)
        ctx.padding = padding
        return cast(Tensor, out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_x = torch.ops.fastdm.conv_norm_relu_pool_backward(grad, *ctx.saved_tensors, ctx.padding)
        return grad_x, None, None, None


class _ClassMeanDifference(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, real: Tensor, synthetic: Tensor, real_offsets: Tensor, synthetic_offsets: Tensor, empty: str
    ) -> Tensor:
        loss, difference = torch.ops.fastdm.class_mean_difference(
            real, synthetic, real_offsets, synthetic_offsets, empty
        )
        ctx.save_for_backward(difference, synthetic_offsets)
        ctx.rows, ctx.dtype = synthetic.shape[0], synthetic.dtype
        return cast(Tensor, loss)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        difference, offsets = ctx.saved_tensors
        grad_synthetic = torch.ops.fastdm.class_mean_difference_backward(grad, difference, offsets, ctx.rows, ctx.dtype)
        return None, grad_synthetic, None, None, None
