"""An image file → uint8 RGB pixels, of the wanted size."""

import contextlib
import functools
import io
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from fastdm.errors import FastDMError
from fastdm.system.checks import irregular
from fastdm.system.native import native
from fastdm.system.notes import Tally

try:
    import simplejpeg
except ImportError:  # the extra fastdm[pack]
    simplejpeg = None

Filter = Literal["box", "bilinear", "hamming", "bicubic", "lanczos", "nearest"]
Fit = Literal["squash", "center_crop"]
Pixels = NDArray[np.uint8]
Size = int | tuple[int, int]
"""Side, or (height, width)."""

LARGEST_FILE = 1 << 30
"""Bytes of an image file beyond which it is refused."""

# Pillow 13 shortens the columns before it narrows the rows where that takes away much more; before, rows came first.
_PILLOW_SHORTENS_FIRST = int(PIL.__version__.split(".")[0]) >= 13
_JPEG = b"\xff\xd8\xff"
_EXIF, _ORIENTATION = b"Exif\0\0", 0x0112
# What Pillow identifies but cannot decode itself; for EPS it starts a program that runs what the file says.
_NOT_DECODED = frozenset(("BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"))
# Modes in which Pillow gives the colours of files with 16 bits for each.
_COLOURS = ("RGB", "RGBA", "CMYK", "LA")
# What the first bytes of a file prove.
_RECOGNISED = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "AVIF", "JPEG2000", "PPM")


@functools.cache
def formats() -> tuple[str, ...]:
    """The formats that are decoded: all that this Pillow has a decoder for."""
    Image.init()
    return tuple(name for name in Image.ID if name not in _NOT_DECODED)


@functools.cache
def suffixes() -> frozenset[str]:
    """The suffixes, in lower case, of files in these formats."""
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in formats())


def is_image(path: Path) -> bool:
    """Whether a regular file is an image by its first bytes, whatever its name."""
    try:
        with Image.open(path, formats=[name for name in _RECOGNISED if name in formats()]):
            return True
    except Image.DecompressionBombError:
        return True  # decoding will say what is wrong with it
    except Exception:  # Pillow's plugins raise many kinds
        return False


def decoder_name() -> str:
    """What decodes JPEG here: simplejpeg and the C++ core are faster than Pillow and give the same bytes."""
    return "Pillow" if simplejpeg is None or native() is None else "simplejpeg"


def check_choices(filter: str, fit: str) -> None:
    """Raise FastDMError unless both are known."""
    for what, value, known in (("filter", filter, get_args(Filter)), ("fit", fit, get_args(Fit))):
        if value not in known:
            raise FastDMError(f"{what} {value!r} is not one of {', '.join(known)}")


def decode_file(
    path: Path, size: Size | None, filter: Filter = "box", fit: Fit = "squash", tally: Tally | None = None
) -> Pixels:
    """Decode an image file to uint8 RGB [3, height, width].

    size: side, or (height, width), that the image is brought to; None keeps its own.
    fit: "squash" brings the whole image to that size, "center_crop" its largest central square. The resampling is
    Pillow's, bit for bit. Grey, palette and CMYK images become RGB; see `eight_bits` for more than 8 bits.
    tally: counts images of which something is left out: transparency, an EXIF orientation (which is not applied), and
    all but the first of several pictures in a file.
    Raises OSError (or another of Pillow's exceptions) for what cannot be decoded, is not a regular file, has more than
    `LARGEST_FILE` bytes, or says that it has more than twice `PIL.Image.MAX_IMAGE_PIXELS` pixels.
    """
    tally = Tally() if tally is None else tally
    data = _read(path)
    core = native()
    if core is not None and simplejpeg is not None and filter == "box" and data.startswith(_JPEG):
        pixels = _decode_jpeg(data)
        if pixels is not None:
            _note_orientation(data, tally, path)
            height, width = _pair(size) or pixels.shape[:2]
            if height != width:  # the core gives squares
                return _resized(Image.fromarray(pixels), size, filter, fit)
            left, top, right, bottom = _window(pixels.shape[1], pixels.shape[0], fit)
            out = np.empty((3, height, width), dtype=np.uint8)
            taken = bottom - top, right - left
            shorten_first = _PILLOW_SHORTENS_FIRST and taken[0] - height > 2 * (taken[1] - width)
            core.resize_box(pixels, top, left, *taken, shorten_first, out)
            return out
    try:
        with Image.open(io.BytesIO(data), formats=formats()) as image:
            _check_pixels(*image.size)
            rgb = eight_bits(image, tally, path).convert("RGB")
            _note_left_out(image, tally, path)
            return _resized(rgb, size, filter, fit)
    except UnidentifiedImageError:
        raise OSError("it is empty" if not data else "it is not an image of a known kind") from None
    except Image.DecompressionBombError as error:
        raise OSError(f"its header promises too many pixels: {error}") from None


def eight_bits(image: Image.Image, tally: Tally, name: object) -> Image.Image:
    """The image with 8 bits per channel: in mode L if it was grey, else RGB.

    16 bits of grey (12 of some TIFFs) are scaled from their whole range, x · 255 / 65535 rounded, floating-point
    numbers from [0, 1]; of colours with 16 bits Pillow gives the upper 8; transparency is dropped. All of that is
    counted in `tally`. Raises OSError for other numbers: 32-bit integers have no standard range, and floating-point
    numbers outside [0, 1] may mean anything.
    """
    mode = image.mode
    if mode in _COLOURS and any(";16" in str(tile) for tile in getattr(image, "tile", ())):
        tally.add("images with 16 bits for each colour cut to 8", name)
    if mode.startswith("I;16") or (mode == "I" and image.format in ("PNG", "PPM")):
        bits = _bits_per_sample(image)
        levels = np.asarray(image).astype(np.int64)
        most = (1 << bits) - 1
        tally.add(f"images with {bits} bits scaled to 8", name)
        return Image.fromarray(((levels.clip(0, most) * 255 + most // 2) // most).astype(np.uint8))
    if mode == "F":
        levels = np.asarray(image)
        if not (np.isfinite(levels).all() and levels.min() >= 0 and levels.max() <= 1):
            raise OSError(
                f"its mode F has pixels of {levels.min():g}..{levels.max():g}; floating-point pixels must lie in [0, 1]"
            )
        tally.add("images of floating-point pixels scaled to 8 bits", name)
        return Image.fromarray((levels * 255).round().astype(np.uint8))
    if mode == "I":
        raise OSError("its mode I (32-bit integers) has no standard range; save it with 8 or 16 bits")
    if mode in ("L", "1") and image.info.get("transparency") is not None:
        tally.add("images whose transparency is dropped", name)
    try:
        if "A" in mode or "a" in mode or (mode not in ("L", "1") and image.info.get("transparency") is not None):
            lowest = image.convert("RGBA").getchannel("A").getextrema()[0]
            if isinstance(lowest, int | float) and lowest < 255:
                tally.add("images whose transparency is dropped", name)
        return image.convert("L" if mode in ("L", "LA", "1") else "RGB")
    except ValueError as error:
        raise OSError(f"its mode {mode} cannot be converted to RGB; save it as RGB") from error


def resize(pixels: Pixels, size: Size, filter: Filter = "box", fit: Fit = "squash") -> Pixels:
    """Resize uint8 [C, H, W], C 1 or 3, as `decode_file` does."""
    image = Image.fromarray(pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    return _resized(image, size, filter, fit)


def _read(path: Path) -> bytes:
    status = path.stat()  # before it is opened: that alone may wait for ever, or set a device in motion
    if kind := irregular(status):
        raise OSError(f"it is {kind}, not a regular file")
    if status.st_size > LARGEST_FILE:
        raise OSError(f"it has {status.st_size} bytes; image files of up to {LARGEST_FILE} are read")
    return path.read_bytes()


def _check_pixels(width: int, height: int) -> None:
    """Pillow's own check, for every decoder: twice its limit is an error."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and width * height > 2 * limit:
        raise OSError(
            f"its header promises {width}x{height} pixels, more than the limit of {2 * limit} "
            "(twice PIL.Image.MAX_IMAGE_PIXELS)"
        )


def _decode_jpeg(data: bytes) -> Pixels | None:
    """uint8 [H, W, 3], or None for what only Pillow decodes or can say what is wrong with."""
    try:
        height, width, colour = simplejpeg.decode_jpeg_header(data)[:3]
        if colour not in ("YCbCr", "Gray"):
            return None
        _check_pixels(width, height)
        pixels: Pixels = simplejpeg.decode_jpeg(data)
    except ValueError:
        return None
    return pixels


def _bits_per_sample(image: Image.Image) -> int:
    bits = getattr(image, "tag_v2", {}).get(258, (16,)) if image.format == "TIFF" else (16,)
    return int(bits[0]) if bits and bits[0] in (12, 16) else 16


def _note_left_out(image: Image.Image, tally: Tally, name: object) -> None:
    """Count what of a decoded image is not used. What is wrong with it, beyond its pixels, does not matter."""
    with contextlib.suppress(Exception):
        if image.getexif().get(_ORIENTATION, 1) != 1:
            tally.add("images whose EXIF orientation is not applied", name)
    with contextlib.suppress(Exception):
        if image.format != "MPO" and getattr(image, "is_animated", False):
            tally.add("files of several pictures of which the first is used", name)


def _note_orientation(data: bytes, tally: Tally, name: object) -> None:
    begin = data.find(_EXIF, 0, 1 << 18)  # behind a preview, a profile or a comment
    with contextlib.suppress(Exception):
        if begin >= 0:
            exif = Image.Exif()
            exif.load(data[begin : begin + (1 << 16)])
            if exif.get(_ORIENTATION, 1) != 1:
                tally.add("images whose EXIF orientation is not applied", name)


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
