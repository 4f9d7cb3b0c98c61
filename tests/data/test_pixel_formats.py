"""Images of more than 8 bits, what is dropped of an image, and headers that promise too much."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastdm.data import decode, open_dataset
from fastdm.data.packed.reading import open_packed
from fastdm.data.packing import pack
from fastdm.errors import FastDMError
from fastdm.system.notes import Tally

RAMP = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)  # 16-bit levels of 0..255
LEVELS = np.arange(256, dtype=np.uint8).reshape(16, 16)


def note(caplog: pytest.LogCaptureFixture) -> str:
    (record,) = [record for record in caplog.records if record.name == "fastdm"]
    caplog.clear()
    return record.getMessage()


def write_12_bits(path: Path) -> None:
    """A TIFF of 16x16 pixels with 12 bits, of the levels 0, 16, 32, …, which Pillow does not write."""
    values = np.arange(256) * 16
    data = bytearray()
    for first, second in values.reshape(-1, 2).tolist():
        data += bytes([first >> 4, (first & 15) << 4 | second >> 8, second & 255])
    tags = [(256, 16), (257, 16), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, 16), (279, len(data))]
    ifd = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    path.write_bytes(b"II*\0" + struct.pack("<I", 8 + len(data)) + bytes(data) + ifd + bytes(4))


@pytest.mark.parametrize("name", ["x.png", "x.tif", "x.pgm", "x.jp2"])
def test_16_bits_are_scaled_opened_and_packed_alike(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "set" / "a" / name
    path.parent.mkdir(parents=True)
    if name == "x.pgm":
        path.write_bytes(b"P5 16 16 65535\n" + RAMP.astype(">u2").tobytes())
    else:
        Image.fromarray(RAMP).save(path)
    opened = open_dataset(tmp_path / "set").train.images
    assert np.array_equal(opened[0].numpy(), np.broadcast_to(LEVELS, (3, 16, 16)))
    assert f"images with 16 bits scaled to 8: 1 (such as {path})" in note(caplog)
    pack(tmp_path / "set", tmp_path / "a.fdm", size=16)
    assert "images with 16 bits scaled to 8: 1" in note(caplog)
    assert np.array_equal(open_packed(tmp_path / "a.fdm").train.images, opened)


def test_16_bits_are_rounded_to_the_nearest_level(tmp_path: Path) -> None:
    levels = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    Image.fromarray(levels).save(tmp_path / "x.png")
    expected = np.floor(levels / 65535 * 255 + 0.5)
    assert np.array_equal(decode.decode_file(tmp_path / "x.png", None)[0], expected)


def test_12_bits_are_scaled_from_their_own_range(tmp_path: Path) -> None:
    write_12_bits(tmp_path / "x.tif")
    tally = Tally()
    pixels = decode.decode_file(tmp_path / "x.tif", None, tally=tally)
    assert np.array_equal(pixels[0], np.floor(np.arange(256).reshape(16, 16) * 16 / 4095 * 255 + 0.5))


def test_floating_point_pixels_are_scaled_from_0_to_1(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "set" / "a" / "x.tiff"
    path.parent.mkdir(parents=True)
    Image.fromarray((LEVELS / 255).astype(np.float32)).save(path)
    assert np.array_equal(open_dataset(tmp_path / "set").train.images[0, 0].numpy(), LEVELS)
    assert "images of floating-point pixels scaled to 8 bits: 1" in note(caplog)


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        (RAMP.astype(np.int32), r"its mode I \(32-bit integers\) has no standard range"),
        (LEVELS.astype(np.float32), r"its mode F has pixels of 0\.\.255; floating-point pixels must lie in \[0, 1\]"),
        (np.full((4, 4), np.nan, np.float32), r"its mode F has pixels of nan"),
    ],
)
def test_other_numbers_are_refused_with_file_and_mode(tmp_path: Path, levels: np.ndarray, message: str) -> None:
    path = tmp_path / "set" / "a" / "x.tif"
    path.parent.mkdir(parents=True)
    Image.fromarray(levels).save(path)
    with pytest.raises(FastDMError, match=rf"a/x\.tif is not a readable image: {message}"):
        open_dataset(tmp_path / "set")
    with pytest.raises(FastDMError, match=rf"a/x\.tif cannot be decoded \({message}"):
        pack(tmp_path / "set", tmp_path / "a.fdm")


def test_what_is_dropped_of_an_image_is_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    rgba = np.dstack([LEVELS] * 4)
    Image.fromarray(rgba).save(folder / "transparent.png")
    Image.fromarray(np.dstack([LEVELS] * 3 + [np.full_like(LEVELS, 255)])).save(folder / "opaque.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.dstack([LEVELS] * 3)).save(folder / "turned.jpg", exif=exif)
    Image.fromarray(np.dstack([LEVELS] * 3)).save(folder / "turned.png", exif=exif)
    first, second = (Image.fromarray(levels) for levels in (LEVELS, LEVELS[::-1].copy()))
    first.save(folder / "moving.gif", save_all=True, append_images=[second])
    opened = open_dataset(tmp_path).train.images
    text = note(caplog)
    assert "images whose transparency is dropped: 1 (such as" in text
    assert "images whose EXIF orientation is not applied: 2 (such as" in text
    assert "files of several pictures of which the first is used: 1 (such as" in text
    assert np.array_equal(opened[0, 0].numpy(), LEVELS)  # moving.gif: its first picture


def huge_png(width: int, height: int) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def huge_jpeg(width: int, height: int) -> bytes:
    """A JPEG of 8x8 pixels whose header says otherwise."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "JPEG")
    data = bytearray(buffer.getvalue())
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(data)


@pytest.mark.parametrize("with_simplejpeg", [True, False], ids=["simplejpeg", "Pillow"])
@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("x.png", huge_png(60000, 60000)),
        ("x.jpg", huge_jpeg(60000, 60000)),
        ("x.jpg", huge_jpeg(65500, 2733)),  # 179,011,500: just above twice 89,478,485
        ("x.bmp", b"BM" + struct.pack("<IHHIIiiHHIIiiII", 70, 0, 0, 54, 40, 60000, 60000, 1, 24, 0, 16, 0, 0, 0, 0)),
    ],
    ids=["PNG", "JPEG", "JPEG just above", "BMP"],
)
def test_a_header_that_promises_too_many_pixels_is_refused_before_anything_is_allocated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, data: bytes, with_simplejpeg: bool
) -> None:
    if with_simplejpeg:
        simplejpeg = pytest.importorskip("simplejpeg")
        monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda data: pytest.fail("decoded"))
    else:
        monkeypatch.setattr(decode, "simplejpeg", None)
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    path = tmp_path / "a" / name
    path.parent.mkdir()
    path.write_bytes(data)
    with pytest.raises(FastDMError, match=rf"{name} is not a readable image: its header promises"):
        open_dataset(tmp_path)


def test_the_limit_of_pixels_is_pillows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (20, 20)).save(tmp_path / "x.jpg")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 199)
    with pytest.raises(OSError, match="its header promises"):
        decode.decode_file(tmp_path / "x.jpg", None)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert decode.decode_file(tmp_path / "x.jpg", None).shape == (3, 20, 20)
