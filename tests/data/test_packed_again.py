"""Packed files when something else happens meanwhile: another name, another process, another file in their place."""

import fcntl
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from torch.utils.data import Dataset as MapStyle

from fastdm.data import open_dataset, packing
from fastdm.data.packed import writing
from fastdm.data.packed.format import header_bytes
from fastdm.data.packed.reading import open_packed
from fastdm.data.packing import pack
from fastdm.errors import FastDMError

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 1, 8, 8), dtype=np.uint8)
LABELS = np.array([0, 0, 1, 1, 2, 2])


class Listed(MapStyle[Any]):
    """Items of a list."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, number: int) -> Any:
        return self.items[number]


def interrupted(real: Callable[..., Any]) -> Callable[..., Any]:
    """A `_fill_task` that does the first two blocks of two images."""

    def fill(self: Any, begin: int, end: int, on_error: Any) -> Any:
        if begin >= 4:
            raise MemoryError("stopped")
        return real(self, begin, end, on_error)

    return fill


def test_a_packing_is_not_resumed_behind_a_header_of_another_length(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name of the set has a part in it; the images would be taken from where they are not."""
    monkeypatch.setattr(writing, "_BLOCK", 2)
    out = tmp_path / "a.fdm"
    with monkeypatch.context() as patch:
        patch.setattr(writing.Partial, "_fill_task", interrupted(writing.Partial._fill_task))
        with pytest.raises(FastDMError, match="the memory that this process may use is not enough"):
            pack((IMAGES, LABELS), out, workers=1, name="n" * 5000)
    with pytest.raises(FastDMError, match="started with different files or settings"):
        pack((IMAGES, LABELS), out, resume=True)
    pack((IMAGES, LABELS), out, resume=True, name="n" * 5000)
    np.testing.assert_array_equal(open_packed(out).train.images, IMAGES)


def test_a_file_that_another_process_completes_while_it_is_opened_stays_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was opened as the partial file has its final name by the time it is locked."""
    out, real = tmp_path / "a.fdm", fcntl.flock
    Path(f"{out}.partial").touch()

    def late(file: int, how: int) -> None:
        monkeypatch.setattr(fcntl, "flock", real)
        pack((IMAGES, LABELS), out)  # the other process
        real(file, how)

    def killed(*_: Any) -> None:
        np.testing.assert_array_equal(open_packed(out).train.images, IMAGES)
        raise KeyboardInterrupt

    monkeypatch.setattr(fcntl, "flock", late)
    real_fill = writing.Partial.fill
    fills = iter([real_fill, killed])
    monkeypatch.setattr(writing.Partial, "fill", lambda *arguments: next(fills)(*arguments))
    with pytest.raises(KeyboardInterrupt):
        pack((255 - IMAGES, LABELS), out, overwrite=True)
    np.testing.assert_array_equal(open_packed(out).train.images, IMAGES)


def test_a_part_is_read_from_the_file_that_was_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pack((IMAGES, LABELS), "a.fdm")
    pool = open_packed("a.fdm", "direct").train
    pack((255 - IMAGES, LABELS), "a.fdm", overwrite=True)
    monkeypatch.chdir("/")
    np.testing.assert_array_equal(pool.classes(1, 3).read(torch.arange(4)), IMAGES[2:])


def test_a_file_is_found_again_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pack((IMAGES, LABELS), "a.fdm")
    pool = open_packed("a.fdm", "mmap").train
    reduced = pool.backing._file.__reduce__()  # type: ignore[union-attr]
    monkeypatch.chdir("/")
    assert pool.backing._file.__reduce__() == reduced  # type: ignore[union-attr]
    with (tmp_path / "a.fdm").open("ab") as file:
        file.write(b"more")
    with pytest.raises(FastDMError, match="was changed after it was opened"):
        pool.read(torch.arange(4))


def test_two_classes_may_have_one_name(tmp_path: Path) -> None:
    """As ImageNet's two cranes."""
    torch.save(
        {"classes": ["crane", "crane", "emu"], "images_train": torch.tensor(IMAGES), "labels_train": LABELS.tolist()},
        tmp_path / "a.pt",
    )
    packed = pack(tmp_path / "a.pt", tmp_path / "a.fdm")
    packed.verify()
    assert open_dataset(packed.path).class_names == ("crane", "crane", "emu")


@pytest.mark.parametrize("fit", ["squash", "center_crop"])
def test_items_of_a_dataset_are_brought_to_size_like_files(tmp_path: Path, fit: Any) -> None:
    rng = np.random.default_rng(1)
    items = [(Image.fromarray(rng.integers(0, 256, (20, 30 + i, 3), dtype=np.uint8)), i // 2) for i in range(4)]
    for number, (picture, label) in enumerate(items):
        (tmp_path / "set" / str(label)).mkdir(parents=True, exist_ok=True)
        picture.save(tmp_path / "set" / str(label) / f"{number}.png")
    options: dict[str, Any] = {"size": 8, "filter": "bicubic", "fit": fit}
    of_files = packing.pack(tmp_path / "set", tmp_path / "a.fdm", **options)
    of_items = packing.pack(Listed(items), tmp_path / "b.fdm", **options)
    assert torch.equal(of_items.tensor("images"), of_files.tensor("images"))
    for setting in ("size", "filter", "fit"):
        assert of_items.metadata[setting] == of_files.metadata[setting]


@pytest.mark.parametrize("use", ["verify", "summary", "skipped"])
def test_a_file_cut_short_meanwhile_is_refused_and_not_read(tmp_path: Path, use: str) -> None:
    """Reading a page of the mapping that is no longer in the file would end the process."""
    file = pack((IMAGES, LABELS), tmp_path / "a.fdm")
    os.truncate(tmp_path / "a.fdm", 4096)
    with pytest.raises(FastDMError, match=r"a\.fdm was changed after it was opened; open it again"):
        _ = getattr(file, use) if use == "skipped" else getattr(file, use)()


@pytest.mark.parametrize(
    ("offsets", "images", "message"),
    [
        ([0, 3, 3, 6], (6, 1, 8, 8), "it has no classes, or one without training images"),
        ([0], (0, 1, 8, 8), "it has no classes, or one without training images"),
        ([0, 3, 6], (6, 1, 0, 8), r"images of shape \[1, 0, 8\] do not go with"),
    ],
    ids=["an empty class", "no classes", "no pixels"],
)
def test_what_packing_refuses_is_refused_in_files_of_others(
    tmp_path: Path, offsets: list[int], images: tuple[int, ...], message: str
) -> None:
    """A file of version 1.0, which has no checksum."""
    classes, count = len(offsets) - 1, images[0]
    metadata = {"format": "fastdm.packed", "version": "1.0", "name": "a", "mean": "[0.5]", "std": "[1]"}
    metadata["classes"] = json.dumps([str(label) for label in range(classes)])
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {
        "images": ("U8", images),
        "skipped": ("U8", (8,)),
        "class_offsets": ("I64", (classes + 1,)),
        "class_crc32": ("I64", (classes,)),
        "source_index": ("I64", (count,)),
    }
    content = bytes(math.prod(images)) + b"[]      " + np.array(offsets).tobytes() + bytes(8 * (classes + count))
    (tmp_path / "a.fdm").write_bytes(header_bytes(metadata, tensors, 4096) + content)
    with pytest.raises(FastDMError, match=message):
        open_packed(tmp_path / "a.fdm")


@pytest.mark.parametrize("resume", [False, True])
def test_what_another_process_has_packed_meanwhile_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resume: bool
) -> None:
    """It may end while this one looks through a large folder."""
    find = packing.find_source

    def found_late(*arguments: Any) -> Any:
        (tmp_path / "a.fdm").write_text("of others")
        return find(*arguments)

    monkeypatch.setattr(packing, "find_source", found_late)
    with pytest.raises(FastDMError, match=r"a\.fdm is there already: another process has packed it meanwhile"):
        pack((IMAGES, LABELS), tmp_path / "a.fdm", resume=resume)
    assert [path.name for path in tmp_path.iterdir()] == ["a.fdm"]
    assert (tmp_path / "a.fdm").read_text() == "of others"
    pack((IMAGES, LABELS), tmp_path / "a.fdm", overwrite=True).verify()


def test_more_bytes_than_any_file_can_have_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FastDMError, match=r"a\.fdm cannot be written: .* \(it takes 6e\+09 GB\)"):
        pack((IMAGES, LABELS), tmp_path / "a.fdm", size=10**9)
    with pytest.raises(FastDMError, match=r"a\.fdm cannot be written: .* \(it takes 6e\+13 GB\)"):
        pack((IMAGES, LABELS), tmp_path / "a.fdm", size=10**11)
    assert not list(tmp_path.iterdir())


def test_a_name_that_is_not_unicode_leaves_a_file_that_any_reader_opens(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    for label in (os.fsdecode(b"gr\xfcn"), "rot"):
        (folder / label).mkdir(parents=True)
        Image.fromarray(IMAGES[0, 0]).save(folder / label / "a.png")
    assert pack(folder, tmp_path / "a.fdm", 8).class_names == (os.fsdecode(b"gr\xfcn"), "rot")
    assert open_packed(tmp_path / "a.fdm").name == r"caf\udce9"
    with safe_open(tmp_path / "a.fdm", "pt") as file:
        assert file.metadata()["name"] == r"caf\udce9"


def test_images_behind_a_gap_are_moved_piece_by_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "_PIECE", 100)  # bytes: neither a whole image of 192 nor a part that fits in one
    for number, label in enumerate("aaabbb"):
        (tmp_path / "zoo" / label).mkdir(parents=True, exist_ok=True)
        Image.fromarray(IMAGES[number, 0]).save(tmp_path / "zoo" / label / f"{number}.png")
    (tmp_path / "zoo" / "a" / "1.png").write_bytes(b"")
    (tmp_path / "zoo" / "b" / "3.png").write_bytes(b"")
    file = pack(tmp_path / "zoo", tmp_path / "a.fdm", 8, on_error="skip")
    file.verify()
    expected = np.broadcast_to(IMAGES[[0, 2, 4, 5]], (4, 3, 8, 8))
    np.testing.assert_array_equal(open_packed(tmp_path / "a.fdm").train.images, expected)


def test_a_file_written_over_in_place_is_refused_though_it_is_as_long(tmp_path: Path) -> None:
    pack((IMAGES, LABELS), tmp_path / "a.fdm")
    pool = open_packed(tmp_path / "a.fdm").train
    status = (tmp_path / "a.fdm").stat()
    (tmp_path / "a.fdm").write_bytes(bytes(status.st_size))
    os.utime(tmp_path / "a.fdm", ns=(status.st_atime_ns, status.st_mtime_ns + 1))  # clocks of file systems are coarse
    with pytest.raises(FastDMError, match=r"a\.fdm was changed after it was opened"):
        pool.gather(torch.tensor([0]))


def test_what_a_stopped_packing_has_left_is_said_and_of_another_process_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By notes, which the command line shows with how to go on."""
    (tmp_path / "link").symlink_to("a.fdm")
    left = [f"what is packed so far is in {tmp_path / 'a.fdm.partial'}"]

    def full(*_: Any) -> None:
        with pytest.raises(FastDMError, match="is being written by another process") as held:
            pack((IMAGES, LABELS), tmp_path / "link")
        assert not hasattr(held.value, "__notes__")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writing.Partial, "finish", full)
    with pytest.raises(FastDMError, match="link cannot be written: No space left on device") as stopped:
        pack((IMAGES, LABELS), tmp_path / "link")
    assert stopped.value.__notes__ == left
