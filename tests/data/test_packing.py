"""Packing: images to one file, the same for any number of workers, and what happens when it is stopped."""

import fcntl
import json
import os
import resource
import shutil
import subprocess
import sys
import zlib
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from fastdm.data import open_dataset, packing
from fastdm.data.packed import writing
from fastdm.data.packed.reading import open_packed
from fastdm.data.packing import pack
from fastdm.errors import FastDMError

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
    pack(folder, tmp_path / "b.fdm", size=8)
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
        with pytest.raises(FastDMError, match="the memory that this process may use is not enough"):
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
        with pytest.raises(FastDMError, match="the memory that this process may use is not enough"):
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
            with pytest.raises(FastDMError, match="the memory that this process may use is not enough"):
                pack(folder, out, size=8, workers=1, overwrite=True)

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
        pack(folder, out, size=8, overwrite=True)
    assert not journal.exists()


def test_a_packed_file_is_replaced_when_asked(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "_BLOCK", 4)
    out = tmp_path / "a.fdm"
    out.write_text("of others")
    for resume in (False, True):
        with pytest.raises(FastDMError, match=r"a\.fdm is there already: overwrite it, or .* \(--overwrite\)"):
            pack(folder, out, size=8, resume=resume)
    with pytest.raises(FastDMError, match="ask for one of them"):
        pack(folder, out, size=8, resume=True, overwrite=True)
    with monkeypatch.context() as patch:
        stopped_at("train/ewe/1.png", patch)
        with pytest.raises(FastDMError, match="the memory that this process may use is not enough"):
            pack(folder, out, size=8, workers=1, overwrite=True)
    assert out.read_text() == "of others"
    pack(folder, out, size=8, resume=True).verify()  # goes on with what will replace it
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.fdm", "animals"]


def test_resuming_without_a_beginning_begins(folder: Path, tmp_path: Path) -> None:
    assert pack(folder, tmp_path / "a.fdm", size=8, resume=True).summary()["parts"]["train"]["images"] == 12


def test_a_killed_packing_leaves_no_file_under_the_final_name(folder: Path, tmp_path: Path) -> None:
    program = f"""
import time
from fastdm.data import packing
def decode(*arguments):
    print("decoding", flush=True)
    time.sleep(600)
packing.decode.decode_file = decode
packing.pack({str(folder)!r}, {str(tmp_path / "a.fdm")!r}, size=8, workers=1)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "decoding\n"
        try:
            with pytest.raises(FastDMError, match="is being written by another process"):
                pack(folder, tmp_path / "a.fdm", size=8)
        finally:
            process.kill()
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
            pack(folder, out, size=64, overwrite=True)
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
