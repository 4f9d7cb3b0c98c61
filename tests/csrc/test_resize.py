"""The C++ core's box filter, compared with Pillow's."""

import numpy as np
import PIL
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

native = pytest.importorskip("fastdm._native")


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 80), st.sampled_from([1, 3]), st.integers(0, 9))
@settings(max_examples=150, deadline=None, derandomize=True)
def test_box_is_pillows(height: int, width: int, size: int, channels: int, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
    out = np.empty((channels, size, size), dtype=np.uint8)
    shorten_first = int(PIL.__version__.split(".")[0]) >= 13 and height - size > 2 * (width - size)
    native.resize_box(pixels, 0, 0, height, width, shorten_first, out)
    image = Image.fromarray(pixels if channels == 3 else pixels[..., 0]).resize((size, size), Image.Resampling.BOX)
    np.testing.assert_array_equal(out, np.asarray(image).reshape(size, size, channels).transpose(2, 0, 1))


@pytest.mark.parametrize("shorten_first", [False, True])
def test_either_order_is_two_passes_with_bytes_between(shorten_first: bool) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (53, 47, 3), dtype=np.uint8)
    out = np.empty((3, 10, 10), dtype=np.uint8)
    native.resize_box(pixels, 3, 2, 50, 45, shorten_first, out)
    image = Image.fromarray(pixels[3:, 2:])
    half = image.resize((45, 10) if shorten_first else (10, 50), Image.Resampling.BOX)
    expected = np.asarray(half.resize((10, 10), Image.Resampling.BOX)).transpose(2, 0, 1)
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("window", [(0, 0, 11, 5), (0, 0, 10, 6), (-1, 0, 5, 5), (9, 0, 2, 5), (0, 0, 0, 5)])
def test_a_window_outside_the_image_is_refused(window: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="window does not lie in the image"):
        native.resize_box(np.zeros((10, 5, 3), np.uint8), *window, False, np.zeros((3, 4, 4), np.uint8))


@pytest.mark.parametrize(
    ("shape", "out"),
    [((10, 5, 2), (2, 4, 4)), ((10, 5, 3), (3, 4, 5)), ((10, 5, 3), (1, 4, 4)), ((4, 4, 1), (1, 0, 0))],
)
def test_wrong_shapes_are_refused(shape: tuple[int, ...], out: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"channels|shape|empty"):
        native.resize_box(np.zeros(shape, np.uint8), 0, 0, 4, 4, False, np.zeros(out, np.uint8))
