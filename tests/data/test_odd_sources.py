"""Sources that are nearly like others: half a test part, wrapped datasets, files that change, colours of 16 bits."""

import io
import struct
import zlib
from array import array
from collections import deque
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, Subset
from torch.utils.data import Dataset as MapStyle

from fastdm.data import decode, open_dataset
from fastdm.errors import FastDMError
from fastdm.system.notes import Tally

RNG = np.random.default_rng(3)
IMAGES = torch.from_numpy(RNG.integers(0, 256, (4, 1, 6, 6), dtype=np.uint8))
LABELS = torch.tensor([0, 0, 1, 1])
PICTURES = [Image.fromarray(image[0].numpy()) for image in IMAGES]


class Listed(MapStyle[Any]):
    """Items of a list, with whatever else a dataset has."""

    def __init__(self, items: list[Any], **others: Any) -> None:
        self.items = items
        self.__dict__.update(others)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, number: int) -> Any:
        return self.items[number]


# --- arrays ----------------------------------------------------------------------------------------------------------


def test_images_without_any_label_are_refused() -> None:
    with pytest.raises(FastDMError, match="4 train images, but 0 labels"):
        open_dataset((IMAGES, LABELS[:0]))


@pytest.mark.parametrize("dtype", [torch.int32, torch.bool, torch.float32])
def test_an_index_is_int64(dtype: torch.dtype) -> None:
    with pytest.raises(FastDMError, match=rf"the index is {dtype} on cpu; it must be int64 on the CPU"):
        open_dataset((IMAGES, LABELS)).train.gather(torch.tensor([0, 1]).to(dtype))


def dictionary(path: Path, **others: Any) -> Path:
    torch.save({"classes": ["a", "b"], "images_train": IMAGES, "labels_train": LABELS, **others}, path)
    return path


@pytest.mark.parametrize(("there", "missing"), [("images_val", "labels_val"), ("labels_val", "images_val")])
def test_half_a_test_part_is_refused(tmp_path: Path, there: str, missing: str) -> None:
    path = dictionary(tmp_path / "a.pt", **{there: IMAGES if there == "images_val" else LABELS})
    with pytest.raises(FastDMError, match=rf"a\.pt has no {missing}; a test part must have both"):
        open_dataset(path)


def test_entries_of_a_pt_file_that_are_not_used_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    open_dataset(dictionary(tmp_path / "a.pt", images_test=IMAGES))
    assert "entries that are not used: 1 (such as images_test)" in caplog.text


@pytest.mark.parametrize("content", ["tuple", "dictionary"])
def test_a_pt_file_that_is_written_again_leaves_the_opened_images(tmp_path: Path, content: str) -> None:
    path = tmp_path / "a.pt"
    images, labels = torch.zeros(400, 3, 32, 32, dtype=torch.uint8), torch.arange(400) // 200
    kind: Any = (
        (images, labels)
        if content == "tuple"
        else {"classes": ["a", "b"], "images_train": images, "labels_train": labels}
    )
    torch.save(kind, path)
    pool = open_dataset(path).train
    images += 7
    torch.save(kind, path)
    assert int(pool.images.max()) == 0


# --- datasets of PyTorch ---------------------------------------------------------------------------------------------


def test_the_names_of_a_dataset_go_before_those_of_what_it_wraps() -> None:
    items = list(zip(PICTURES, LABELS.tolist(), strict=True))
    inner = Listed(items, classes=["cat", "dog"])
    wrapped = Listed([(picture, 1 - label) for picture, label in items], classes=["dog", "cat"], dataset=inner)
    assert open_dataset(wrapped).class_names == ("dog", "cat")
    assert open_dataset(Subset(wrapped, [0, 2])).class_names == ("dog", "cat")
    assert open_dataset(Listed(items, dataset=inner, classes=2)).class_names == ("cat", "dog")


def test_a_dataset_that_is_none_is_not_looked_into() -> None:
    opened = open_dataset(Listed([(PICTURES[0], 0)], dataset="cifar", datasets={"a": 1}, classes=["a"]))
    assert (opened.name, opened.class_names) == ("Listed", ("a",))


def test_datasets_of_other_classes_are_not_concatenated() -> None:
    """Label 1 is dog in one and emu in the other."""
    items = list(zip(PICTURES, LABELS.tolist(), strict=True))
    parts = [Listed(items, classes=names) for names in (["cat", "dog"], ["cat", "emu"])]
    with pytest.raises(FastDMError, match=r"the first part has the classes cat, dog \(2\), the next part cat, emu"):
        open_dataset(ConcatDataset(parts))


def test_names_are_those_of_the_labels_that_are_taken() -> None:
    """A dataset of Hugging Face's with numbers in one column and named classes in another."""
    features = {"label": object(), "fine_label": SimpleNamespace(names=["cat", "dog"])}
    items = [{"image": PICTURES[i], "label": i // 2, "fine_label": 1 - i // 2} for i in range(4)]
    assert open_dataset(Listed(items, features=features)).class_names == ("0", "1")
    for item in items:
        del item["label"]
    del features["label"]
    opened = open_dataset(Listed(items, features=features))
    assert opened.class_names == ("cat", "dog")
    assert torch.equal(opened.train.images, IMAGES[[2, 3, 0, 1]])


@pytest.mark.parametrize("labels", [range(4), array("l", range(4)), deque(range(4))], ids=["range", "array", "deque"])
def test_any_sequence_of_numbers_is_one_of_labels(labels: Any) -> None:
    assert open_dataset((IMAGES, labels)).train.labels.tolist() == [0, 1, 2, 3]


def test_grey_with_transparency_stays_grey(caplog: pytest.LogCaptureFixture) -> None:
    transparent = Image.merge("LA", (PICTURES[1], Image.new("L", (6, 6), 9)))
    opened = open_dataset(Listed([(PICTURES[0], 0), (transparent, 0)]))
    assert torch.equal(opened.train.images, IMAGES[:2])
    assert "images whose transparency is dropped: 1" in caplog.text


# --- image files -----------------------------------------------------------------------------------------------------


def png_of_16_bits(path: Path, levels: np.ndarray) -> None:
    """RGB, which Pillow itself does not write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, _ = levels.shape
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in levels)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def test_colours_of_16_bits_are_cut_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    levels = RNG.integers(0, 65536, (5, 7, 3), dtype=np.uint16)
    png_of_16_bits(tmp_path / "a.png", levels)
    tally = Tally()
    pixels = decode.decode_file(tmp_path / "a.png", None, tally=tally)
    np.testing.assert_array_equal(pixels, (levels >> 8).transpose(2, 0, 1))
    tally.report("a")
    assert "images with 16 bits for each colour cut to 8: 1" in caplog.text


def test_an_orientation_behind_a_long_comment_is_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    exif, data = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    PICTURES[0].save(data, "JPEG", exif=exif)
    start, rest = data.getvalue()[:2], data.getvalue()[2:]
    comments = (b"\xff\xfe" + (60_002).to_bytes(2) + bytes(60_000)) * 3
    (tmp_path / "a.jpg").write_bytes(start + comments + rest)
    tally = Tally()
    decode.decode_file(tmp_path / "a.jpg", 4, tally=tally)
    tally.report("a")
    assert "images whose EXIF orientation is not applied: 1" in caplog.text


def test_a_lone_class_of_the_test_part_is_found_by_either_spelling(tmp_path: Path) -> None:
    for folder in ("train/f", "train/\u00e9", "val/e\u0301"):
        (tmp_path / folder).mkdir(parents=True)
        PICTURES[0].save(tmp_path / folder / "0.png")
    test = open_dataset(tmp_path).test
    assert test is not None
    assert test.class_sizes.tolist() == [0, 1]


def test_the_order_of_classes_does_not_depend_on_the_spelling_of_a_file_system(tmp_path: Path) -> None:
    for form, accented in (("decomposed", "e\u0301"), ("composed", "\u00e9")):
        for name in ("f", accented, "z"):
            (tmp_path / form / name).mkdir(parents=True)
            PICTURES[0].save(tmp_path / form / name / "0.png")
        assert open_dataset(tmp_path / form).class_names == ("f", "z", "\u00e9")
