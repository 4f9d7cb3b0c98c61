"""An image file → uint8 RGB pixels, of the wanted size."""

import io
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from fastdm.errors import FastDMError
from fastdm.system.native import native

try:
    import simplejpeg
except ImportError:  # the extra fastdm[pack]
    simplejpeg = None

Filter = Literal["box", "bilinear", "hamming", "bicubic", "lanczos", "nearest"]
Fit = Literal["squash", "center_crop"]
Pixels = NDArray[np.uint8]
Size = int | tuple[int, int]
"""Side, or (height, width)."""

# Pillow 13 shortens the columns before it narrows the rows where that takes away much more; before, rows came first.
_PILLOW_SHORTENS_FIRST = int(PIL.__version__.split(".")[0]) >= 13
_JPEG = b"\xff\xd8\xff"


def decoder_name() -> str:
    """What decodes JPEG here: simplejpeg and the C++ core are faster than Pillow and give the same bytes."""
    return "Pillow" if simplejpeg is None or native() is None else "simplejpeg"


def check_choices(filter: str, fit: str) -> None:
    """Raise FastDMError unless both are known."""
    for what, value, known in (("filter", filter, get_args(Filter)), ("fit", fit, get_args(Fit))):
        if value not in known:
            raise FastDMError(f"{what} {value!r} is not one of {', '.join(known)}")


def decode_file(path: Path, size: Size | None, filter: Filter = "box", fit: Fit = "squash") -> Pixels:
    """Decode an image file to uint8 RGB [3, height, width].

    size: side, or (height, width), that the image is brought to; None keeps its own.
    fit: "squash" brings the whole image to that size, "center_crop" its largest central square. The resampling is
    Pillow's, bit for bit. Grey, palette and CMYK images become RGB; an EXIF orientation is not applied.
    Raises OSError (or another of Pillow's exceptions) for what cannot be decoded.
    """
    data = path.read_bytes()
    core = native()
    if core is not None and simplejpeg is not None and filter == "box" and data.startswith(_JPEG):
        pixels = _decode_jpeg(data)
        if pixels is not None:
            height, width = _pair(size) or pixels.shape[:2]
            left, top, right, bottom = _window(pixels.shape[1], pixels.shape[0], fit)
            out = np.empty((3, height, width), dtype=np.uint8)
            taken = bottom - top, right - left
            shorten_first = _PILLOW_SHORTENS_FIRST and taken[0] - height > 2 * (taken[1] - width)
            core.resize_box(pixels, top, left, *taken, shorten_first, out)
            return out
    try:
        with Image.open(io.BytesIO(data)) as image:
            return _resized(image.convert("RGB"), size, filter, fit)
    except UnidentifiedImageError:
        raise OSError("it is empty" if not data else "it is not an image of a known kind") from None


def resize(pixels: Pixels, size: Size, filter: Filter = "box", fit: Fit = "squash") -> Pixels:
    """Resize uint8 [C, H, W], C 1 or 3, as `decode_file` does."""
    image = Image.fromarray(pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    return _resized(image, size, filter, fit)


def _decode_jpeg(data: bytes) -> Pixels | None:
    """uint8 [H, W, 3], or None for what only Pillow decodes or can say what is wrong with."""
    try:
        if simplejpeg.decode_jpeg_header(data)[2] not in ("YCbCr", "Gray"):
            return None
        pixels: Pixels = simplejpeg.decode_jpeg(data)
    except ValueError:
        return None
    return pixels


def _resized(image: Image.Image, size: Size | None, filter: Filter, fit: Fit) -> Pixels:
    box = _window(*image.size, fit)
    if box != (0, 0, *image.size):
        image = image.crop(box)
    height, width = _pair(size) or image.size[::-1]
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling[filter.upper()])
    pixels = np.asarray(image)
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _pair(size: Size | None) -> tuple[int, int] | None:
    return (size, size) if isinstance(size, int) else size


def _window(width: int, height: int, fit: Fit) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of what is kept."""
    if fit == "squash":
        return 0, 0, width, height
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side
