"""Packing, opening and verifying packed files, and everything that can be wrong with them."""

import dataclasses
import fcntl
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import zlib
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors import safe_open

from fastdm.data import open_dataset, packing
from fastdm.data.packed import writing
from fastdm.data.packed.format import PackedFile, header_bytes
from fastdm.data.packed.reading import open_packed
from fastdm.data.packing import pack
from fastdm.errors import FastDMError
from fastdm.synthetic.initial import INIT_STEP, random_selection

REAL = os.environ.get("FASTDM_DATA")
SIZES = {"cat": 5, "dog": 3, "ewe": 4}


def write_image(path: Path, seed: int, side: int = 20) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side + 3, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "animals"
    for number, (label, count) in enumerate(SIZES.items()):
        for i in range(count):
            write_image(root / "train" / label / f"{i}.{'png' if i % 2 else 'jpg'}", 10 * number + i)
        for i in range(2):
            write_image(root / "val" / label / f"{i}.jpg", 100 + 10 * number + i)
    return root


def box(path: Path, size: int) -> np.ndarray:
    with Image.open(path) as image:
        resized = image.convert("RGB").resize((size, size), Image.Resampling.BOX)
    return np.asarray(resized).transpose(2, 0, 1)


# --- packing ---------------------------------------------------------------------------------------------------------


def test_a_packed_folder_is_its_images(folder: Path, tmp_path: Path) -> None:
    file = pack(folder, tmp_path / "a.fdm", size=8)
    data = open_packed(tmp_path / "a.fdm")
    assert data.name == "animals"
    assert data.class_names == tuple(SIZES)
    assert data.train.class_sizes.tolist() == list(SIZES.values())
    for part, pool in (("train", data.train), ("val", data.test)):
        assert pool is not None
        expected = np.stack([box(path, 8) for path in sorted((folder / part).glob("*/*"))])
        np.testing.assert_array_equal(pool.images.numpy(), expected)
    pixels = data.train.images.double() / 255
    torch.testing.assert_close(torch.tensor(data.mean).double(), pixels.mean((0, 2, 3)))
    torch.testing.assert_close(torch.tensor(data.std).double(), pixels.std((0, 2, 3), correction=0))
    assert file.summary()["parts"]["test"] == {"images": 6, "smallest class": 2, "largest class": 2}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.fdm", "animals"]


def test_any_safetensors_reader_opens_it(folder: Path, tmp_path: Path) -> None:
    pack(folder, tmp_path / "a.fdm", size=7)
    with safe_open(tmp_path / "a.fdm", "pt") as file:
        images, offsets = file.get_tensor("images"), file.get_tensor("class_offsets")
        crcs = file.get_tensor("class_crc32").tolist()
        assert file.get_tensor("source_index").tolist() == list(range(12))
        assert file.get_tensor("test_source_index").tolist() == list(range(6))
        assert json.loads(bytes(file.get_tensor("skipped").tolist())) == []
        metadata = file.metadata()
    assert torch.equal(images, open_packed(tmp_path / "a.fdm").train.images)
    assert crcs == [zlib.crc32(images[a:b].numpy().tobytes()) for a, b in pairwise(offsets)]
    assert (metadata["format"], metadata["size"], metadata["filter"]) == ("fastdm.packed", "7", "box")
    begin = int.from_bytes((tmp_path / "a.fdm").read_bytes()[:8], "little") + 8
    assert begin % 4096 == 0


def test_the_bytes_do_not_depend_on_the_number_of_workers(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "_TASK", 2)
    monkeypatch.setattr(writing, "_BLOCK", 6)
    (folder / "train" / "dog" / "1.png").write_bytes(b"")
    files = [tmp_path / f"{workers}.fdm" for workers in (1, 2, 7)]
    for path in files:
        pack(folder, path, size=8, workers=int(path.stem), on_error="skip")
    assert len({path.read_bytes() for path in files}) == 1


def test_progress_is_shown_with_the_rate_and_the_time_left(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pack(folder, tmp_path / "a.fdm", size=8, progress=True)
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (line["done"], line["total"], line["seconds_left"]) == (18, 18, 0.0)
    assert line["images_per_second"] > 0
    pack(folder, tmp_path / "a.fdm", size=8)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("size", [None, 8], ids=["as they are", "resized"])
def test_arrays_are_packed(tmp_path: Path, size: int | None) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 12, 12), dtype=np.uint8)
    source = (pixels, [0, 1, 2] * 3, pixels[:3], [0, 1, 2])
    pack(source, tmp_path / "a.fdm", size=size, name="numbers")
    opened, expected = open_packed(tmp_path / "a.fdm"), open_dataset(source)
    assert (opened.name, opened.mean, opened.std) == ("numbers", expected.mean, expected.std)
    for found, wanted in ((opened.train, expected.train), (opened.test, expected.test)):
        assert found is not None
        assert wanted is not None
        images = wanted.images.numpy()
        if size:
            images = np.stack(
                [np.asarray(Image.fromarray(i[0]).resize((8, 8), Image.Resampling.BOX))[None] for i in images]
            )
        np.testing.assert_array_equal(found.images.numpy(), images)
        assert torch.equal(found.class_offsets, wanted.class_offsets)


def test_an_npz_file_is_packed(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 6, 3), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", x_train=pixels, y_train=np.array([0, 1, 1, 0]))
    pack(tmp_path / "a.npz", tmp_path / "a.fdm")
    np.testing.assert_array_equal(
        open_packed(tmp_path / "a.fdm").train.images, pixels[[0, 3, 1, 2]].transpose(0, 3, 1, 2)
    )


# --- images that cannot be decoded -----------------------------------------------------------------------------------

DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "truncated": lambda data: data[: len(data) // 2],
    "corrupt": lambda data: b"\xff\xd8\xff" + bytes(len(data)),
    "zeros": lambda data: bytes(len(data)),
    "text": lambda data: b"<html>not found</html>",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_image_ends_the_packing_or_is_left_out(folder: Path, tmp_path: Path, damage: str) -> None:
    bad = folder / "train" / "dog" / "0.jpg"
    bad.write_bytes(DAMAGES[damage](bad.read_bytes()))
    out = tmp_path / "a.fdm"
    with pytest.raises(FastDMError, match=r"train/dog/0\.jpg cannot be decoded .*on_error='skip'"):
        pack(folder, out, size=8)
    assert not out.exists()
    file = pack(folder, out, size=8, on_error="skip")
    assert [name for name, _ in file.skipped] == ["train/dog/0.jpg"]
    assert file.summary()["skipped"] == file.skipped
    file.verify()
    data = open_packed(out)
    left = [path for path in sorted((folder / "train").glob("*/*")) if path != bad]
    np.testing.assert_array_equal(data.train.images.numpy(), np.stack([box(path, 8) for path in left]))
    assert data.train.class_sizes.tolist() == [5, 2, 4]
    assert file.tensor("source_index").tolist() == [0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11]
    assert data.test is not None
    np.testing.assert_array_equal(
        data.test.images.numpy(), np.stack([box(path, 8) for path in sorted((folder / "val").glob("*/*"))])
    )


def test_a_listed_image_that_is_not_there_is_named_or_left_out(folder: Path, tmp_path: Path) -> None:
    (folder / "train" / "dog" / "9.jpg").symlink_to("nowhere")
    with pytest.raises(FastDMError, match=r"train/dog/9\.jpg cannot be decoded \(.*No such file"):
        pack(folder, tmp_path / "a.fdm", size=8)
    file = pack(folder, tmp_path / "a.fdm", size=8, on_error="skip")
    assert [name for name, _ in file.skipped] == ["train/dog/9.jpg"]


def test_a_source_that_cannot_be_read_is_named(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("scipy")
    for label in SIZES:
        shutil.rmtree(folder / "val" / label)
    (folder / "ILSVRC2012_devkit_t12" / "data").mkdir(parents=True)
    with pytest.raises(FastDMError, match=r"animals cannot be read: .*meta\.mat"):
        pack(folder, tmp_path / "a.fdm", size=8)


def test_a_class_that_would_end_empty_is_an_error(folder: Path, tmp_path: Path) -> None:
    for path in (folder / "train" / "dog").iterdir():
        path.write_bytes(b"")
    with pytest.raises(FastDMError, match="class 'dog' would end without training images"):
        pack(folder, tmp_path / "a.fdm", size=8, on_error="skip")
    assert not (tmp_path / "a.fdm").exists()


# --- packings that stop ----------------------------------------------------------------------------------------------


def stopped_at(path: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let decoding stop for good at a file; returns the names of what is decoded."""
    decoded: list[str] = []
    real = packing.decode.decode_file

    def decode(file: Path, *arguments: Any) -> Any:
        if str(file).endswith(path):
            raise MemoryError("stopped")
        decoded.append(file.name)
        return real(file, *arguments)

    monkeypatch.setattr(packing.decode, "decode_file", decode)
    return decoded


def test_a_stopped_packing_is_resumed(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "_BLOCK", 4)
    (folder / "train" / "cat" / "1.png").write_bytes(b"")  # what was left out is remembered
    pack(folder, tmp_path / "whole.fdm", size=8, on_error="skip")
    out = tmp_path / "a.fdm"
    with monkeypatch.context() as patch:
        stopped_at("train/ewe/1.png", patch)
        with pytest.raises(MemoryError):
            pack(folder, out, size=8, on_error="skip", workers=1)
    assert not out.exists()
    with (tmp_path / "a.fdm.partial.journal").open("a") as journal:
        journal.write('{"block": 8, "ski')  # a line that was being written
    with monkeypatch.context() as patch:
        decoded = stopped_at("nothing", patch)
        pack(folder, out, size=8, on_error="skip", resume=True)
    assert len(decoded) == 18 - 8
    assert out.read_bytes() == (tmp_path / "whole.fdm").read_bytes()
    assert not list(tmp_path.glob("*.partial*"))


def test_resuming_is_refused_after_a_change(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "a.fdm"
    with monkeypatch.context() as patch:
        stopped_at("train/ewe/1.png", patch)
        with pytest.raises(MemoryError):
            pack(folder, out, size=8)
    with pytest.raises(FastDMError, match="started with different files or settings"):
        pack(folder, out, size=9, resume=True)
    write_image(folder / "train" / "cat" / "0.jpg", 77)
    with pytest.raises(FastDMError, match="started with different files or settings"):
        pack(folder, out, size=8, resume=True)
    pack(folder, out, size=8)
    np.testing.assert_array_equal(open_packed(out).train.images[0], box(folder / "train" / "cat" / "0.jpg", 8))


def test_blocks_that_are_gone_are_not_resumed(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The partial file was removed, or a new beginning was killed or found the disk full."""
    monkeypatch.setattr(writing, "_BLOCK", 4)
    out, journal = tmp_path / "a.fdm", tmp_path / "a.fdm.partial.journal"

    def stop() -> None:
        with monkeypatch.context() as patch:
            stopped_at("train/ewe/1.png", patch)
            with pytest.raises(MemoryError):
                pack(folder, out, size=8, workers=1)

    def full(*_: int) -> None:
        raise OSError("full")

    pack(folder, tmp_path / "whole.fdm", size=8)
    stop()
    assert len(journal.read_text().splitlines()) == 3
    (tmp_path / "a.fdm.partial").unlink()
    pack(folder, out, size=8, resume=True)
    assert out.read_bytes() == (tmp_path / "whole.fdm").read_bytes()
    stop()
    monkeypatch.setattr(writing.os, "posix_fallocate", full)
    with pytest.raises(FastDMError, match="cannot be written"):
        pack(folder, out, size=8)
    assert not journal.exists()


def test_resuming_without_a_beginning_begins(folder: Path, tmp_path: Path) -> None:
    assert pack(folder, tmp_path / "a.fdm", size=8, resume=True).summary()["parts"]["train"]["images"] == 12


def test_a_killed_packing_leaves_no_file_under_the_final_name(folder: Path, tmp_path: Path) -> None:
    program = f"""
import time
from fastdm.data import packing
from fastdm.data.packing import pack
real = packing.decode.decode_file
def slow(*arguments):
    print("decoding", flush=True)
    time.sleep(0.2)
    return real(*arguments)
packing.decode.decode_file = slow
pack({str(folder)!r}, {str(tmp_path / "a.fdm")!r}, size=8)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "decoding\n"
        with pytest.raises(FastDMError, match="is being written by another process"):
            pack(folder, tmp_path / "a.fdm", size=8)
        process.send_signal(signal.SIGKILL)
    assert not (tmp_path / "a.fdm").exists()
    pack(folder, tmp_path / "a.fdm", size=8, resume=True).verify()


def test_a_full_disk_is_told_before_anything_is_decoded(folder: Path, tmp_path: Path) -> None:
    """A limit on the size of files takes the place of a small disk."""
    out = tmp_path / "a.fdm"
    out.write_bytes(b"what was there before")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6000, hard))
    try:
        with pytest.raises(FastDMError, match=r"a\.fdm cannot be written: .*it takes .* GB"):
            pack(folder, out, size=64)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert out.read_bytes() == b"what was there before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.fdm", "animals"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "size is 0"),
        ({"workers": 0}, "workers is 0; it must be a whole number of at least 1"),
        ({"workers": -1}, "workers is -1"),
        ({"filter": "cubic"}, "filter 'cubic' is not one of box, bilinear"),
        ({"fit": "crop"}, "fit 'crop' is not one of squash, center_crop"),
        ({"on_error": "ignore"}, "on_error 'ignore' is not one of raise, skip"),
    ],
)
def test_unknown_choices_are_refused(folder: Path, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(FastDMError, match=message):
        pack(folder, tmp_path / "a.fdm", **options)


def test_a_place_that_cannot_be_written_is_refused(folder: Path, tmp_path: Path) -> None:
    for out in (tmp_path, tmp_path / "absent" / "a.fdm"):
        with pytest.raises(FastDMError, match="cannot be written: it is a folder, or the folder it should stand in"):
            pack(folder, out)


# --- opening ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (30, 9, 9, 3), dtype=np.uint8)
    path = tmp_path / "a.fdm"
    pack((pixels, [0, 1, 2] * 10, pixels[:6], [0, 1, 2] * 2), path)
    return path


@pytest.mark.parametrize("io", ["auto", "mmap", "direct", "ram"])
def test_every_residency_gathers_the_same(packed: Path, io: Any) -> None:
    expected = open_packed(packed, "mmap").train.images.clone()
    pool = open_packed(packed, io).train
    index = pool.draw(0, 0, 4)
    assert torch.equal(pool.gather(index), expected[index])
    assert torch.equal(pool.images, expected)
    half = pool.gather(index, dtype=torch.bfloat16, layout="last", mean=(0.5,) * 3, std=(0.5,) * 3)
    assert torch.equal(half, ((expected[index].float() * (1 / 127.5)) - 1).bfloat16().movedim(2, -1))
    chunks = [chunk.images.clone() for chunk in pool.stream([index], chunk_bytes=1)]
    assert torch.equal(torch.cat(chunks), expected[index])


def test_a_set_larger_than_memory_is_read_directly(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastdm.data.packed import reading as module

    assert type(open_packed(packed).train.backing) is module._Mapped
    monkeypatch.setattr(module, "free_memory", lambda: 1000)
    assert type(open_packed(packed).train.backing) is module._Direct


@pytest.mark.parametrize("io", ["auto", "mmap", "direct", "ram"])
def test_a_part_of_the_classes_reads_the_same_images(packed: Path, io: Any) -> None:
    whole = open_packed(packed, io).train
    part = whole.classes(1, whole.num_classes)
    index = part.draw(3, 4, 4)
    assert torch.equal(index + whole.class_offsets[1], whole.draw(3, 4, 4)[1:])
    assert torch.equal(part.gather(index), whole.gather(index + whole.class_offsets[1]))
    assert torch.equal(part.classes(0, 1).gather(index[:1]), part.gather(index[:1]))


def test_a_part_that_fits_into_memory_is_mapped_where_the_whole_is_not(
    packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastdm.data.packed import reading as module

    whole = open_packed(packed).train
    largest = int(whole.class_sizes.max()) * whole.images[0].numel()
    monkeypatch.setattr(module, "free_memory", lambda: largest * 4 // 3 + 1)
    assert type(open_packed(packed).train.backing) is module._Direct
    assert type(open_packed(packed).train.classes(0, 1).backing) is module._Mapped
    assert type(open_packed(packed, "direct").train.classes(0, 1).backing) is module._Direct
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1000")
    assert type(open_packed(packed).train.classes(0, 1).backing) is module._Direct


def test_the_file_cannot_be_changed_through_its_mapping(packed: Path) -> None:
    before = packed.read_bytes()
    open_packed(packed, "mmap").train.images.fill_(0)
    assert packed.read_bytes() == before


def test_a_large_file_opens_without_being_read(tmp_path: Path) -> None:
    """100 GB of pixels, all of them a hole."""
    classes, count = 1000, 100_000_000_000 // (3 * 64 * 64 * 1000)
    metadata = {"format": "fastdm.packed", "version": "1.0", "name": "large", "mean": "[0,0,0]", "std": "[1,1,1]"}
    metadata["classes"] = json.dumps([f"class {i}" for i in range(classes)])
    n = classes * count
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {
        "images": ("U8", (n, 3, 64, 64)),
        "skipped": ("U8", (8,)),
        "class_offsets": ("I64", (classes + 1,)),
        "class_crc32": ("I64", (classes,)),
        "source_index": ("I64", (n,)),
    }
    tail = b"[]      " + np.arange(0, n + 1, count, dtype=np.int64).tobytes() + bytes(8 * classes)
    with (tmp_path / "a.fdm").open("wb") as file:
        file.write(header_bytes(metadata, tensors, 1 << 16))
        file.seek(n * 3 * 64 * 64, os.SEEK_CUR)
        file.write(tail)
        file.truncate(file.tell() + 8 * n)
    for io in ("auto", "direct"):
        pool = open_packed(tmp_path / "a.fdm", io).train
        assert len(pool) == n
        assert not pool.gather(pool.draw(0, 0, 2)[::100]).any()


def edit_header(path: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    edit(header)
    path.write_bytes(data[:8] + json.dumps(header).encode().ljust(end - 8) + data[end:])


def edit_offsets(path: Path, values: list[int]) -> None:
    file = PackedFile(path)
    data = bytearray(path.read_bytes())
    at = file.entries["class_offsets"].begin
    data[at : at + 32] = np.array(values, dtype=np.int64).tobytes()
    path.write_bytes(data)


EDITS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "newer version": (lambda h: h["__metadata__"].update(version="2.0"), "format version '2.0'.*upgrade"),
    "no version": (lambda h: h["__metadata__"].pop("version"), "format version ''"),
    "another format": (lambda h: h["__metadata__"].update(format="pt"), "is a safetensors file, but not a packed"),
    "no metadata": (lambda h: h.pop("__metadata__"), "is a safetensors file, but not a packed"),
    "wrong dtype": (lambda h: h["class_offsets"].update(dtype="F64"), "impossible tensors"),
    "images of another dtype": (lambda h: h["images"].update(dtype="I64", shape=[1, 3, 9, 270 // 8]), "impossible"),
    "wrong shape": (lambda h: h["images"].update(shape=[30, 3, 9, 8]), "impossible tensors"),
    "reshaped": (lambda h: h["images"].update(shape=[30, 9, 9, 3]), "do not go with mean and std"),
    "fractions": (lambda h: h["images"].update(shape=[30.0, 3, 9, 9]), "impossible tensors"),
    "no offsets": (lambda h: h.pop("class_offsets"), "class offsets of its train part are missing"),
    "no images": (lambda h: h.pop("images"), "no training images"),
    "no index": (lambda h: h.update(other=h.pop("source_index")), "source_index is missing"),
    "no names": (lambda h: h["__metadata__"].pop("classes"), "classes is missing"),
    "two of a name": (lambda h: h["__metadata__"].update(classes='["a", "b", "a"]'), "two of its classes"),
    "too few names": (lambda h: h["__metadata__"].update(classes='["a", "b"]'), "class offsets"),
    "no mean": (lambda h: h["__metadata__"].update(mean="none"), "mean is missing"),
    "a mean of words": (lambda h: h["__metadata__"].update(mean='["a", "b", "c"]'), "mean is missing.* or not"),
    "a std of 0": (lambda h: h["__metadata__"].update(std="[1, 0, 1]"), "no image can be normalised"),
    "no number": (lambda h: h["__metadata__"].update(mean="[0, NaN, 0]"), "no image can be normalised"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_inconsistent_files_are_refused_by_name(packed: Path, edit: str) -> None:
    change, message = EDITS[edit]
    edit_header(packed, change)
    with pytest.raises(FastDMError, match=f"a\\.fdm .*{message}"):
        open_packed(packed)


@pytest.mark.parametrize("offsets", [[0, 20, 10, 30], [1, 10, 20, 30], [0, 10, 20, 31], [0, 10, 20, 29]])
def test_offsets_that_do_not_rise_to_the_end_are_refused(packed: Path, offsets: list[int]) -> None:
    edit_offsets(packed, offsets)
    with pytest.raises(FastDMError, match=r"a\.fdm is damaged: class_offsets must rise from 0 to 30"):
        open_packed(packed)


@pytest.mark.parametrize("size", [0, 5, 100, 5000, -1])
def test_truncated_files_are_refused_by_name(packed: Path, size: int) -> None:
    packed.write_bytes(packed.read_bytes()[:size])
    with pytest.raises(FastDMError, match=r"a\.fdm .*(cut short|no packed data set)"):
        open_packed(packed)


@pytest.mark.parametrize(
    "data", [b"\x89PNG" * 50, b"\xff" * 100, b"\x02" + bytes(7) + b"[]"], ids=["png", "ones", "list"]
)
def test_foreign_files_are_refused_by_name(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.fdm").write_bytes(data)
    with pytest.raises(FastDMError, match=r"a\.fdm is not a packed data set"):
        open_packed(tmp_path / "a.fdm")


def test_what_is_not_there_and_unknown_io_are_refused(packed: Path) -> None:
    with pytest.raises(FastDMError, match="absent cannot be read: No such file"):
        open_packed(packed.with_name("absent"))
    with pytest.raises(FastDMError, match="io 'disk' is not one of auto, mmap"):
        open_packed(packed, "disk")  # type: ignore[arg-type]


@given(st.data())
@settings(max_examples=150, deadline=None, derandomize=True)
def test_a_header_of_random_damage_is_refused_or_harmless(tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    """Whatever the header says, opening raises FastDMError or gives tensors that lie in the file."""
    path = tmp_path_factory.getbasetemp() / "fuzzed.fdm"
    if not path.exists():
        pack((np.zeros((4, 4, 4), np.uint8), [0, 0, 1, 1]), path)
        shutil.copy(path, path.with_suffix(".good"))
    whole = bytearray(path.with_suffix(".good").read_bytes())
    end = whole.rindex(b"}") + 1
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, end - 1))] = data.draw(st.sampled_from(list(b'0123456789-,:[]{}"eIU.\x00\xff')))
    path.write_bytes(whole)
    try:
        dataset = open_packed(path)
    except FastDMError:
        return
    dataset.train.gather(torch.arange(len(dataset.train)))


# --- damage that the header does not show ----------------------------------------------------------------------------


def test_verify_names_the_damaged_classes(packed: Path) -> None:
    PackedFile(packed).verify()
    entry = PackedFile(packed).entries["images"]
    with packed.open("r+b") as file:
        file.seek(entry.begin + 15 * 243)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(FastDMError, match=r"a\.fdm is damaged: .* 1 classes .*\(1 \(train\)\)"):
        PackedFile(packed).verify()


@pytest.mark.parametrize("io", ["mmap", "direct"])
def test_a_file_changed_under_the_mapping_is_refused_before_it_is_touched(packed: Path, io: Any) -> None:
    pool = open_packed(packed, io).train
    os.truncate(packed, 4096)
    with pytest.raises(FastDMError, match=r"a\.fdm was changed after it was opened"):
        pool.gather(torch.tensor([29]))
    with pytest.raises(FastDMError, match=r"a\.fdm was changed after it was opened"):
        list(pool.stream([torch.tensor([[29]])]))


def test_initial_images_are_gathered_not_read_through_the_mapping(packed: Path) -> None:
    data = open_packed(packed)
    expected = (data.train.images[data.train.draw(0, INIT_STEP, 2).flatten()] / 255 - 0.5) / 0.25
    data = dataclasses.replace(data, mean=(0.5,) * 3, std=(0.25,) * 3)
    # One rounding each of x / 255, the mean and the quotient, of numbers below 2.
    torch.testing.assert_close(random_selection(data, 2).images, expected, rtol=0, atol=3 * 2.0**-23)
    os.truncate(packed, 4096)
    with pytest.raises(FastDMError, match=r"a\.fdm was changed after it was opened"):
        random_selection(data, 2)


def test_a_file_system_without_direct_reads_is_said(
    packed: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    core = SimpleNamespace(RecordFile=lambda path: SimpleNamespace(direct=False))
    monkeypatch.setattr("fastdm.data.packed.reading.native", lambda: core)
    with caplog.at_level("INFO", "fastdm"):
        open_packed(packed, "direct")
    assert "a.fdm: this file system has no direct reads" in caplog.text


@pytest.mark.parametrize("io", ["mmap", "direct"])
def test_a_file_that_is_replaced_or_removed_stays_usable(packed: Path, io: Any) -> None:
    pool = open_packed(packed, io).train
    expected = pool.images.clone()
    pack((np.zeros((3, 9, 9, 3), np.uint8), [0, 1, 2]), packed)
    assert torch.equal(pool.gather(torch.arange(30)), expected)
    packed.unlink()
    assert torch.equal(pool.gather(torch.arange(30)), expected)


def test_another_lock_holder_is_named(folder: Path, tmp_path: Path) -> None:
    with (tmp_path / "a.fdm.partial").open("wb") as partial:
        fcntl.flock(partial, fcntl.LOCK_EX)
        with pytest.raises(FastDMError, match=r"a\.fdm\.partial is being written by another process"):
            pack(folder, tmp_path / "a.fdm")


@pytest.mark.skipif(REAL is None, reason="FASTDM_DATA names no folder of real data sets")
def test_real_photographs(tmp_path: Path) -> None:
    root = Path(str(REAL)) / "imagenette224"
    file = pack(root, tmp_path / "a.fdm", size=32)
    data = open_packed(tmp_path / "a.fdm")
    assert data.train.class_sizes.tolist() == [40] * 10
    assert data.mean == (0.485, 0.456, 0.406)
    paths = sorted((root / "train").glob("*/*"))
    np.testing.assert_array_equal(data.train.images[::37].numpy(), np.stack([box(path, 32) for path in paths[::37]]))
    file.verify()
