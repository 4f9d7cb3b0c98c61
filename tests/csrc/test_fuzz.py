"""Whatever Python passes to the C++ core, it returns a result or raises an exception; sanitize.sh checks the memory.

NumPy only: importing PyTorch under a sanitizer takes minutes.
"""

import contextlib
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

native = pytest.importorskip("fastdm._native")

REFUSED = (ValueError, TypeError, OSError, MemoryError)
DTYPES = st.sampled_from([np.uint8, np.int32, np.int64, np.float32, np.float64])
SMALL = st.integers(-2, 9)
EXTREME = st.sampled_from([2**63 - 1, -(2**63)])
ANY = SMALL | st.sampled_from([2**31, 2**32, 2**62, 2**63 - 1, -(2**63), 2**64])
ODD: Any = st.none() | st.text(max_size=3) | st.binary(max_size=9) | st.floats()


def arrays(dims: int, dtype: Any = None) -> st.SearchStrategy[Any]:
    """Mostly valid arrays, sometimes of another dtype or shape, read-only or not contiguous."""
    right = st.just(dtype) if dtype else DTYPES
    shapes = hnp.array_shapes(min_dims=dims, max_dims=dims, min_side=0, max_side=5)

    def twist(array: np.ndarray, how: int) -> np.ndarray:
        if how == 1:
            array.flags.writeable = False
        return array.T if how == 2 else array[::2] if how == 3 else array

    good = hnp.arrays(right, shapes, elements=None if dtype != np.int64 else SMALL | st.integers(0, 40) | EXTREME)
    return st.builds(twist, good, st.sampled_from([0] * 9 + [1, 2, 3]))


def fuzz(*strategies: st.SearchStrategy[Any]) -> Any:
    """Each argument is usually valid and occasionally something else."""
    any_array = st.integers(1, 5).flatmap(arrays)
    return lambda test: settings(max_examples=100, deadline=None, derandomize=True)(
        given(st.tuples(*(s | s | s | s | s | s | ODD | any_array for s in strategies)))(test)
    )


@fuzz(ANY, ANY, arrays(1, np.int64), arrays(1, np.int64), arrays(2, np.int64), st.booleans())
def test_draw(arguments: tuple[Any, ...]) -> None:
    with contextlib.suppress(*REFUSED):
        native.draw(*arguments)


@fuzz(ANY, ANY, arrays(1, np.int64), ANY, arrays(2, np.float32))
def test_uniform(arguments: tuple[Any, ...]) -> None:
    with contextlib.suppress(*REFUSED):
        native.uniform(*arguments)


@fuzz(
    arrays(4, np.uint8),
    arrays(1, np.int64),
    arrays(4),
    st.sampled_from(["planar", "last", "rgbx", "x"]),
    st.lists(st.floats(width=32), max_size=4),
    st.lists(st.floats(width=32), max_size=4),
    ANY,
)
def test_gather(arguments: tuple[Any, ...]) -> None:
    with contextlib.suppress(*REFUSED):
        native.gather(*arguments)


@given(
    st.integers(0, 4),
    st.sampled_from([1, 3]),
    st.integers(0, 5),
    st.integers(0, 5),
    st.lists(SMALL, max_size=6),
    DTYPES,
)
@settings(max_examples=100, deadline=None, derandomize=True)
def test_gather_with_shapes_that_fit(
    count: int, channels: int, height: int, width: int, rows: list[int], dtype: Any
) -> None:
    images = np.zeros((count, channels, height, width), dtype=np.uint8)
    index = np.array(rows, dtype=np.int64)
    out = np.ones((len(rows), channels, height, width), dtype=dtype)
    possible = all(0 <= row < count for row in rows) and dtype in (np.uint8, np.float32)
    with contextlib.nullcontext() if possible else pytest.raises(REFUSED):
        native.gather(images, index, out, "planar", [1.0] * channels, [0.0] * channels)
        assert not out.any()


@fuzz(arrays(3, np.uint8), SMALL, SMALL, SMALL, SMALL, st.booleans(), arrays(3, np.uint8))
def test_resize(arguments: tuple[Any, ...]) -> None:
    with contextlib.suppress(*REFUSED):
        native.resize_box(*arguments)


@fuzz(ANY, arrays(1, np.int64), arrays(4, np.uint8))
def test_read(arguments: tuple[Any, ...]) -> None:
    file = native.RecordFile(__file__)
    with contextlib.suppress(*REFUSED):
        file.read(*arguments)


INDEX = arrays(1, np.int64) | st.none()
CHANNEL = st.lists(st.floats(width=32), max_size=4)


@fuzz(arrays(4), arrays(2, np.float32), INDEX, INDEX, CHANNEL, CHANNEL, st.booleans(), arrays(4, np.float32))
def test_dsa(arguments: tuple[Any, ...]) -> None:
    with contextlib.suppress(*REFUSED):
        native.dsa(*arguments)


@given(
    st.tuples(st.integers(0, 3), st.sampled_from([1, 2, 3]), st.integers(0, 6), st.integers(0, 6)),
    st.sampled_from([np.uint8, np.float32]),
    hnp.arrays(np.float32, st.tuples(st.integers(0, 3), st.just(16)), elements=st.floats(width=32)),
    st.lists(st.integers(-1, 3), max_size=5),
    st.booleans(),
)
@settings(max_examples=200, deadline=None, derandomize=True)
def test_dsa_with_shapes_that_fit(
    shape: tuple[int, ...], dtype: Any, table: np.ndarray, rows: list[int], last: bool
) -> None:
    """Arbitrary values in the table; an index and a group that may be out of range."""
    count, channels, height, width = shape
    index = group = np.array(rows, np.int64)
    size = (height, width, channels) if last else (channels, height, width)
    out, grad_images = np.empty((len(rows), *size), np.float32), np.empty((len(rows), *shape[1:]), np.float32)
    possible = channels != 2 and height * width > 0 and all(0 <= row < min(count, len(table)) for row in rows)
    with contextlib.nullcontext() if possible else pytest.raises(REFUSED):
        native.dsa(np.ones(shape, dtype), table, group, index, [1.0] * channels, [0.0] * channels, last, out)
        native.dsa_backward(np.ones_like(out), table, group, last, grad_images)


AFFINE = arrays(1, np.float32) | st.none()


@fuzz(
    arrays(4, np.float32), AFFINE, AFFINE, st.floats(width=32), st.booleans(), arrays(4), *[arrays(2, np.float32)] * 2
)
def test_norm_relu_pool(arguments: tuple[Any, ...]) -> None:
    with contextlib.suppress(*REFUSED):
        native.norm_relu_pool(*arguments)


@fuzz(arrays(4, np.float32), arrays(1, np.int64), AFFINE, AFFINE, st.floats(width=32), st.booleans(), arrays(2))
def test_norm_relu_pool_mean(arguments: tuple[Any, ...]) -> None:
    with contextlib.suppress(*REFUSED):
        native.norm_relu_pool_mean(*arguments)


@given(
    st.tuples(st.integers(0, 3), st.integers(0, 70), st.integers(0, 6), st.integers(0, 6)),
    st.booleans(),
    st.lists(st.integers(-1, 4), max_size=4),
)
@settings(max_examples=100, deadline=None, derandomize=True)
def test_norm_relu_pool_with_shapes_that_fit(shape: tuple[int, ...], last: bool, offsets: list[int]) -> None:
    count, channels, height, width = shape
    x, grad_x = (np.ones((count, height, width, channels) if last else shape, np.float32) for _ in range(2))
    pooled = (height // 2, width // 2)
    out = np.empty((count, *pooled, channels) if last else (count, channels, *pooled), np.float32)
    mean, rstd = np.ones((2, count, channels), np.float32)
    weight, bias = np.ones((2, channels), np.float32)
    native.norm_relu_pool(x, weight, bias, 1e-5, last, out, mean, rstd)
    native.norm_relu_pool_backward(out, x, mean, rstd, weight, bias, last, grad_x, weight.copy(), bias.copy())
    means = np.empty((max(0, len(offsets) - 1), channels * pooled[0] * pooled[1]), np.float32)
    possible = bool(offsets) and all(0 <= first <= end <= count for first, end in pairwise(offsets))
    with contextlib.nullcontext() if possible else pytest.raises(REFUSED):
        native.norm_relu_pool_mean(x, np.array(offsets, np.int64), weight, bias, 1e-5, last, means)


@given(
    st.tuples(st.integers(0, 3), st.integers(0, 9), st.integers(0, 9)),
    st.sampled_from([(0, 32), (1, 32), (3, 64), (7, 32), (32, 0), (32, 96), (64, 32), (8, 32), (32, 40)]),
    ANY,
)
@settings(max_examples=100, deadline=None, derandomize=True)
def test_convolutions_of_any_shape(images: tuple[int, int, int], channels: tuple[int, int], padding: int) -> None:
    (count, height, width), (inputs, outputs) = images, channels
    x, grad_x = np.zeros((2, count, height, width, inputs), np.float32)
    weight = np.zeros((outputs, inputs, 3, 3), np.float32)
    rows, columns = (max(0, min(size + 2 * padding - 2, 30)) for size in (height, width))
    conv, out = (np.empty((count, rows // by, columns // by, outputs), np.float32) for by in (1, 2))
    mean, rstd = np.ones((2, count, outputs), np.float32)
    scale, grad_scale = np.ones((2, outputs), np.float32)
    grad_weight = np.empty((3, 3, inputs, outputs), np.float32)
    possible = native.can_convolve(inputs, outputs) and 0 <= padding < 10 and min(height, width) > 0
    with contextlib.nullcontext() if possible and min(rows, columns) > 1 else pytest.raises(REFUSED):
        native.conv_norm_relu_pool(x, weight, scale, None, padding, 1e-5, out, conv, mean, rstd)
        native.conv_norm_relu_pool_backward(
            out, x, conv, mean, rstd, weight, scale, None, padding, grad_x, grad_weight, grad_scale, None
        )
