"""Whatever Python hands to the C++ core, the answer is a result or an exception; sanitize.sh looks at the memory.

NumPy only: importing PyTorch under a sanitizer takes minutes.
"""

import contextlib
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
ANY = SMALL | st.sampled_from([2**31, 2**32, 2**62, 2**63 - 1, -(2**63), 2**64])
ODD: Any = st.none() | st.text(max_size=3) | st.binary(max_size=9) | st.floats()


def arrays(dims: int, dtype: Any = None) -> st.SearchStrategy[Any]:
    """Mostly arrays of the right kind, sometimes of another, read-only, or not contiguous."""
    right = st.just(dtype) if dtype else DTYPES
    shapes = hnp.array_shapes(min_dims=dims, max_dims=dims, min_side=0, max_side=5)

    def twist(array: np.ndarray, how: int) -> np.ndarray:
        if how == 1:
            array.flags.writeable = False
        return array.T if how == 2 else array[::2] if how == 3 else array

    good = hnp.arrays(right, shapes, elements=None if dtype != np.int64 else SMALL | st.integers(0, 40))
    return st.builds(twist, good, st.sampled_from([0] * 9 + [1, 2, 3]))


def fuzz(*strategies: st.SearchStrategy[Any]) -> Any:
    """Each argument as it should be, or rarely something else."""
    any_array = st.integers(1, 5).flatmap(arrays)
    return lambda test: settings(max_examples=100, deadline=None, derandomize=True)(
        given(st.tuples(*(s | s | s | s | s | s | ODD | any_array for s in strategies)))(test)
    )


@fuzz(ANY, ANY, arrays(1, np.int64), arrays(1, np.int64), arrays(2, np.int64))
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
