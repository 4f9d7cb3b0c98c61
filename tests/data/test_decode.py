"""Decoded and resized pixels are Pillow's, bit for bit."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastdm.data import decode

REAL = os.environ.get("FASTDM_DATA")
RNG = np.random.default_rng(5)


def pillow(path: Path, size: int, fit: str = "squash", filter: str = "BOX") -> np.ndarray:
    with Image.open(path) as image:
        rgb = image.convert("RGB")
    if fit == "center_crop":
        side = min(rgb.size)
        left, top = (rgb.width - side) // 2, (rgb.height - side) // 2
        rgb = rgb.crop((left, top, left + side, top + side))
    return np.asarray(rgb.resize((size, size), Image.Resampling[filter])).transpose(2, 0, 1)


def photograph(height: int, width: int, channels: int = 3) -> np.ndarray:
    """Noise over a gradient: what JPEG neither removes nor saturates everywhere."""
    gradient = np.linspace(0, 200, height)[:, None, None] + np.zeros((height, width, channels))
    return (gradient + RNG.integers(0, 56, gradient.shape)).astype(np.uint8)


@pytest.mark.parametrize("with_simplejpeg", [True, False], ids=["simplejpeg", "Pillow"])
@pytest.mark.parametrize("fit", ["squash", "center_crop"])
@pytest.mark.parametrize(
    ("height", "width"),
    [(375, 500), (500, 333), (600, 100), (64, 64), (9, 300), (1, 1)],
    ids=["wide", "tall", "so tall that Pillow 13 begins with the columns", "as it is", "narrow", "one pixel"],
)
def test_jpeg(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, height: int, width: int, fit: decode.Fit, with_simplejpeg: bool
) -> None:
    if with_simplejpeg:
        pytest.importorskip("simplejpeg")
    else:
        monkeypatch.setattr(decode, "simplejpeg", None)
    path = tmp_path / "a.jpg"
    Image.fromarray(photograph(height, width)).save(path, quality=90)
    np.testing.assert_array_equal(decode.decode_file(path, 64, "box", fit), pillow(path, 64, fit))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [None, (20, 36), (36, 20)])
def test_a_jpeg_that_is_not_brought_to_a_square(tmp_path: Path, size: tuple[int, int] | None, channels: int) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(photograph(90, 120, channels).squeeze()).save(path, quality=90)
    with Image.open(path) as image:
        height, width = size or (90, 120)
        expected = np.asarray(image.convert("RGB").resize((width, height), Image.Resampling.BOX)).transpose(2, 0, 1)
    np.testing.assert_array_equal(decode.decode_file(path, size), expected)


def test_every_mode_that_image_sets_contain(tmp_path: Path) -> None:
    image = Image.fromarray(photograph(90, 120))
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn by 90 degrees, which is not to be applied
    image.save(tmp_path / "rotated.jpg", exif=exif)
    image.convert("CMYK").save(tmp_path / "cmyk.JPEG")
    image.convert("L").save(tmp_path / "grey.jpg")
    image.save(tmp_path / "png.JPEG", format="PNG")
    image.convert("P").save(tmp_path / "palette.png")
    image.convert("RGBA").save(tmp_path / "alpha.png")
    image.save(tmp_path / "progressive.jpg", progressive=True)
    for path in tmp_path.iterdir():
        np.testing.assert_array_equal(decode.decode_file(path, 32), pillow(path, 32), err_msg=path.name)


@pytest.mark.parametrize("filter", ["bilinear", "lanczos"])
def test_other_filters(tmp_path: Path, filter: decode.Filter) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(photograph(70, 50)).save(path)
    np.testing.assert_array_equal(decode.decode_file(path, 16, filter), pillow(path, 16, filter=filter.upper()))


@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_are_resized_like_files(tmp_path: Path, channels: int) -> None:
    pixels = photograph(50, 40, channels)
    Image.fromarray(pixels if channels == 3 else pixels[..., 0]).save(tmp_path / "a.png")
    resized = decode.resize(pixels.transpose(2, 0, 1), 16)
    np.testing.assert_array_equal(resized, decode.decode_file(tmp_path / "a.png", 16)[:channels])


def test_a_truncated_jpeg_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(photograph(90, 120)).save(path)
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(OSError, match="truncated"):
        decode.decode_file(path, 32)


@pytest.mark.skipif(REAL is None, reason="FASTDM_DATA names no folder of real data sets")
def test_real_photographs() -> None:
    for path in sorted(Path(str(REAL)).glob("imagenet_samples/*/*"))[::3]:
        np.testing.assert_array_equal(decode.decode_file(path, 64), pillow(path, 64), err_msg=path.name)
