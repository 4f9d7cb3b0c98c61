"""What a packed file says is under a checksum; where it is packed to; journals that are damaged."""

import json
import os
import random
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fastdm.applications.inspection import inspect
from fastdm.data import open_dataset, packing
from fastdm.data.packed import writing
from fastdm.data.packed.format import PackedFile
from fastdm.data.packed.reading import open_packed
from fastdm.data.packing import pack
from fastdm.errors import FastDMError

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 5, 5, 3), dtype=np.uint8)
SOURCE = (PIXELS, [0, 1, 2] * 4, PIXELS[:3], [0, 1, 2])


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    pack(SOURCE, tmp_path / "a.fdm", name="numbers")
    return tmp_path / "a.fdm"


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    change(header["__metadata__"])
    path.write_bytes(data[:8] + json.dumps(header).encode().ljust(end - 8) + data[end:])


# --- checksums -------------------------------------------------------------------------------------------------------


def test_every_flipped_bit_is_found(packed: Path) -> None:
    """By opening, for all but the images and the source indices; by verifying, for those."""
    whole = packed.read_bytes()
    file = PackedFile(packed)
    end = whole[:4096].rindex(b"}") + 1
    by_verifying = [(entry.begin, entry.begin + entry.bytes) for name, entry in file.entries.items() if "index" in name]
    by_verifying += [(file.entries[name].begin, file.entries["skipped"].begin) for name in ("images",)]
    chosen = random.Random(1)
    bits = chosen.sample(range(8 * end), 1500) + chosen.sample(range(8 * 4096, 8 * len(whole)), 1500)
    bits += [8 * (whole.index(b'"1.1"') + 3), 8 * whole.index(b"checksum")]  # 1.0; a key of another name
    for bit in bits:
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        packed.write_bytes(damaged)
        if any(begin <= bit // 8 < end for begin, end in by_verifying):
            opened = PackedFile(packed)
            with pytest.raises(FastDMError, match="is damaged"):
                opened.verify()
        else:
            with pytest.raises(FastDMError):
                PackedFile(packed)
    packed.write_bytes(whole)
    PackedFile(packed).verify()


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.update(mean="[0.5, 0.5, 0.5]"),
        lambda m: m.update(std="[0.5, 0.5, 0.5]"),
        lambda m: m.update(classes='["0", "2", "1"]'),
        lambda m: m.update(name="digits"),
        lambda m: m.update(filter="bilinear"),
        lambda m: m.update(checksum="0"),
        lambda m: m.pop("checksum"),
    ],
)
def test_a_changed_description_is_refused(packed: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    edit(packed, change)
    for read in (open_packed, inspect):
        with pytest.raises(FastDMError, match=r"a\.fdm is damaged: what it says of its images .*not what was written"):
            read(packed)


def test_files_of_the_format_before_open_and_verify(packed: Path) -> None:
    def to_version_1_0(metadata: dict[str, Any]) -> None:
        metadata["version"] = "1.0"
        del metadata["checksum"], metadata["index_crc32"]

    expected = open_packed(packed).train.images.clone()
    edit(packed, to_version_1_0)
    assert torch.equal(open_packed(packed).train.images, expected)
    assert inspect(packed, verify=True)["parts"]["train"]["images"] == 12


def test_source_indices_are_verified(packed: Path) -> None:
    data = bytearray(packed.read_bytes())
    data[PackedFile(packed).entries["source_index"].begin] ^= 1
    packed.write_bytes(data)
    open_packed(packed)
    with pytest.raises(FastDMError, match="its source_index is not the one that was written"):
        inspect(packed, verify=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(mean=f"[1{'0' * 400}, 0, 0]"), "inf is not a finite number"),
        (lambda m: m.update(mean="[true, 0, 0]"), "'True' is not a number"),
        (lambda m: m.update(mean=f"[{'9' * 5000}, 0, 0]"), "mean is missing"),
        (lambda m: m.update(classes="[" * 100_000 + "]" * 100_000), "classes is missing"),
        (lambda m: m.update(version=f"{'9' * 5000}.0"), "has format version '99999"),
        (lambda m: m.update(version="1"), "has format version '1'"),
        (lambda m: m.update(version="0.9"), "has format version '0.9'"),
    ],
)
def test_numbers_and_texts_that_python_cannot_read_are_a_sentence(
    packed: Path, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    data = packed.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    change(header["__metadata__"])
    text = json.dumps(header).encode()
    packed.write_bytes(len(text).to_bytes(8, "little") + text + data[end:])
    with pytest.raises(FastDMError, match=message):
        open_packed(packed)


@pytest.mark.parametrize("text", [b"[1]", b"[[1, 2]]", b'{"a": 1}', b"\xff", b"[" * 200_000])
def test_a_list_of_skipped_files_that_is_none_is_refused(packed: Path, text: bytes) -> None:
    data = packed.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["__metadata__"]["version"] = "1.0"  # without checksum
    for key in ("checksum", "index_crc32"):
        del header["__metadata__"][key]
    length, begin = len(data) - end, header["skipped"]["data_offsets"][0]
    for name, entry in header.items():
        if name != "__metadata__" and entry["data_offsets"][0] > begin:
            entry["data_offsets"] = [length + offset for offset in (0, entry["data_offsets"][1] - begin)]
    # The list stands at the end now; the tensors behind it are read from where they are, which does not matter here.
    header = {name: entry for name, entry in header.items() if name in ("__metadata__", "images", "skipped")} | {
        name: {"dtype": "I64", "shape": [4 if "offsets" in name else 3], "data_offsets": [0, 0]}
        for name in ("class_offsets", "class_crc32")
    }
    small = np.array([0, 4, 8, 12], np.int64).tobytes() + bytes(24) + bytes(96)
    at = header["images"]["data_offsets"][1]
    header["class_offsets"]["data_offsets"] = [at, at + 32]
    header["class_crc32"]["data_offsets"] = [at + 32, at + 56]
    header["source_index"] = {"dtype": "I64", "shape": [12], "data_offsets": [at + 56, at + 152]}
    header["skipped"] = {"dtype": "U8", "shape": [len(text)], "data_offsets": [at + 152, at + 152 + len(text)]}
    head = json.dumps(header).encode()
    packed.write_bytes(len(head).to_bytes(8, "little") + head + data[end : end + at] + small + text)
    opened = PackedFile(packed)
    for read in (lambda: opened.skipped, opened.summary):
        with pytest.raises(FastDMError, match="its list of skipped files cannot be read"):
            read()


# --- where it is packed to -------------------------------------------------------------------------------------------


def test_only_a_regular_file_is_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for out, kind in ((tmp_path / "pipe", "a named pipe"), (Path("/dev/null"), "a device")):
        with pytest.raises(FastDMError, match=f"{out} is {kind}, which is not replaced; name a file"):
            pack(SOURCE, out)
    (tmp_path / "null").symlink_to("/dev/null")
    with pytest.raises(FastDMError, match="null is a device"):
        pack(SOURCE, tmp_path / "null")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["null", "pipe"]


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "there.fdm").write_text("before")
    for target in ("disk/there.fdm", "disk/new.fdm", "absent/new.fdm"):
        link = tmp_path / "link"
        link.unlink(missing_ok=True)
        link.symlink_to(target)
        if target.startswith("absent"):
            with pytest.raises(FastDMError, match=r"it is a link into .*absent, which is not there"):
                pack(SOURCE, link)
            continue
        pack(SOURCE, link, overwrite=True)
        assert link.is_symlink()
        assert len(open_dataset(tmp_path / target).train) == 12


def test_a_packed_file_may_be_read_by_others(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        pack(SOURCE, tmp_path / "a.fdm")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.fdm").stat().st_mode) == 0o644


# --- journals --------------------------------------------------------------------------------------------------------


@pytest.fixture
def stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A folder of images, and the file that it was half packed to: 4 blocks of 2 images."""
    root, out = tmp_path / "set", tmp_path / "a.fdm"
    for number in range(12):
        path = root / f"class {number // 6}" / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(PIXELS[number]).save(path)
    pack(root, tmp_path / "whole.fdm", size=5)
    monkeypatch.setattr(writing, "_BLOCK", 2)
    real = packing.decode.decode_file

    def stop(path: Path, *arguments: Any) -> Any:
        if path.name == "08.png":
            raise MemoryError("stopped")
        return real(path, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(packing.decode, "decode_file", stop)
        with pytest.raises(FastDMError, match="the memory that this process may use is not enough"):
            pack(root, out, size=5, workers=1)
    return root, out


@pytest.mark.parametrize("line", [0, 2, 3])
@pytest.mark.parametrize("damage", [b"\xff\n", b"{}\n", b"[1]\n", b"\n", None], ids=str)
def test_a_damaged_journal_costs_only_time(
    stopped: tuple[Path, Path], line: int, damage: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    """None: another block's number, which would leave images black."""
    root, out = stopped
    journal = out.with_name("a.fdm.partial.journal")
    lines = journal.read_bytes().splitlines(keepends=True)
    assert len(lines) == 5
    lines[line] = (
        lines[line].replace(b'"block": ', b'"block": 1').replace(b"plan", b"plum") if damage is None else damage
    )
    journal.write_bytes(b"".join(lines))
    pack(root, out, size=5, resume=True)
    assert out.read_bytes() == out.with_name("whole.fdm").read_bytes()
    again = "all is" if line == 0 else "its images are"
    assert f"line {line + 1} of {journal} is damaged: {again} packed again" in caplog.text


def test_a_note_of_what_is_left_out_comes_once(stopped: tuple[Path, Path], caplog: pytest.LogCaptureFixture) -> None:
    root, out = stopped
    (root / "class 0" / "notes.txt").write_text("text")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing.decode, "decode_file", lambda *_: (_ for _ in ()).throw(OSError("broken")))
        with pytest.raises(FastDMError, match="cannot be decoded"):
            pack(root, out, size=5)
    pack(root, out, size=5)
    assert sum("notes.txt" in record.getMessage() for record in caplog.records) == 1
