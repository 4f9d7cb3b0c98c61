"""Opening and verifying packed files, and everything that can be wrong with them."""

import dataclasses
import json
import os
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdm.data.packed.format import PackedFile, header_bytes
from fastdm.data.packed.reading import open_packed
from fastdm.data.packing import pack
from fastdm.errors import FastDMError
from fastdm.synthetic.initial import INIT_STEP, random_selection


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


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_fork_reads_what_another_thread_was_bringing_into_memory(
    packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = open_packed(packed, "mmap").train
    begun, forked = threading.Event(), threading.Event()

    def populate(*_: Any) -> None:
        begun.set()
        forked.wait()

    monkeypatch.setattr(PackedFile, "populate", populate)
    reader = threading.Thread(target=lambda: pool.gather(torch.tensor([0])))
    reader.start()
    begun.wait()
    child = os.fork()
    if child == 0:  # nothing of pytest may run on in here
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(10)
        os._exit(0 if (pool.gather(torch.tensor([5])).numpy() == pool.images[5:6].numpy()).all() else 1)
    forked.set()
    reader.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


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
    "two of a name": (lambda h: h["__metadata__"].update(classes='["a", "b", "a"]'), "what it says of its images"),
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
        pack((np.zeros((4, 4, 4), np.uint8), [0, 0, 1, 1]), path, overwrite=True)
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
    pack((np.zeros((3, 9, 9, 3), np.uint8), [0, 1, 2]), packed, overwrite=True)
    assert torch.equal(pool.gather(torch.arange(30)), expected)
    packed.unlink()
    assert torch.equal(pool.gather(torch.arange(30)), expected)
