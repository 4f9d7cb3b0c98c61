"""What a checkpoint says is what was saved, or it is refused; and a full disk costs nothing that was there."""

import dataclasses
import errno
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import fastdm
from fastdm.errors import FastDMError
from fastdm.runs.checkpoint import (
    FILE,
    PREVIOUS,
    SHARDS,
    SINGLE_FILES,
    SINGLE_FORMATS,
    Checkpoint,
    load_checkpoint,
    read_checkpoint,
    save_checkpoint,
    write_index,
    write_shard,
)
from fastdm.system.files import crc32
from tests.disk import files_of_at_most
from tests.oracles import random_dataset

SETTINGS = json.dumps({"ipc": 1, "seed": 0})


def checkpoint(iteration: int) -> Checkpoint:
    generator = torch.Generator().manual_seed(iteration)
    return Checkpoint(iteration, {name: torch.rand(2, 3, generator=generator) for name in ("a", "b")}, SETTINGS)


def same(one: Checkpoint, other: Checkpoint) -> bool:
    return (
        (one.iteration, one.settings) == (other.iteration, other.settings)
        and one.tensors.keys() == other.tensors.keys()
        and all(torch.equal(one.tensors[name], other.tensors[name]) for name in one.tensors)
    )


def write_in_shards(folder: Path, saved: Checkpoint, bounds: list[int]) -> None:
    """Write a checkpoint as several ranks do."""
    places = [(number, len(bounds) - 1) for number in range(len(bounds) - 1)]
    shards = []
    for place, first, stop in zip(places, bounds[:-1], bounds[1:], strict=True):
        tensors = {name: tensor[first:stop].contiguous() for name, tensor in saved.tensors.items()}
        shards.append(write_shard(folder, saved.iteration, tensors, range(first, stop), place))
    write_index(folder, saved.iteration, saved.settings, shards)


@pytest.mark.parametrize("which", [FILE, SHARDS])
def test_no_changed_byte_changes_what_a_checkpoint_says(which: str, tmp_path: Path) -> None:
    saved = checkpoint(7)
    save_checkpoint(tmp_path, saved)
    (path,) = tmp_path.glob(which)
    content = path.read_bytes()
    refused = 0
    for position in range(len(content)):
        for bit in (0, 3, 6):
            damaged = bytearray(content)
            damaged[position] ^= 1 << bit
            path.write_bytes(damaged)
            try:
                assert same(read_checkpoint(tmp_path / FILE), saved)
            except FastDMError as error:
                refused += path.name in str(error)
    # But for spaces and line ends of the index, and for the header's spaces and the format of a shard.
    assert refused > 2.2 * len(content)


def test_shards_of_any_number_of_ranks_are_read_as_rows(tmp_path: Path) -> None:
    saved = Checkpoint(9, {"a": torch.arange(24.0).view(12, 2), "b": torch.arange(12)}, SETTINGS)
    for bounds in ([0, 12], [0, 5, 12], [0, 1, 2, 11, 12]):
        write_in_shards(tmp_path, saved, bounds)
        assert same(read_checkpoint(tmp_path / FILE), saved)
        for rows in (range(12), range(3), range(4, 6), range(5, 12)):
            part = read_checkpoint(tmp_path / FILE, rows)
            assert torch.equal(part.tensors["a"], saved.tensors["a"][rows.start : rows.stop])
            assert torch.equal(part.tensors["b"], saved.tensors["b"][rows.start : rows.stop])


def test_the_last_two_are_kept(tmp_path: Path) -> None:
    for iteration in (1, 2, 3):
        write_in_shards(tmp_path, checkpoint(iteration), [0, 1, 2])
    assert same(read_checkpoint(tmp_path / FILE), checkpoint(3))
    assert same(read_checkpoint(tmp_path / PREVIOUS), checkpoint(2))
    assert len(list(tmp_path.iterdir())) == 2 + 2 * 2


@pytest.mark.parametrize("damage", ["missing index", "missing shard", "half a shard", "flipped byte", "foreign shard"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_taken(damage: str, tmp_path: Path) -> None:
    for iteration in (5, 6):
        write_in_shards(tmp_path, checkpoint(iteration), [0, 1, 2])
    shard = tmp_path / "checkpoint-00000006-1of2.safetensors"
    content = bytearray(shard.read_bytes())
    content[-3] ^= 4
    if damage == "missing index":
        (tmp_path / FILE).unlink()
    elif damage == "missing shard":
        shard.unlink()
    else:
        other = (tmp_path / "checkpoint-00000005-1of2.safetensors").read_bytes()
        shard.write_bytes({"half a shard": content[:-9], "flipped byte": content, "foreign shard": other}[damage])
    notes: list[str] = []
    loaded = load_checkpoint(tmp_path, SETTINGS, note=notes.append)
    assert loaded is not None
    assert same(loaded, checkpoint(5))
    assert len(notes) == 1
    assert "iteration 5 is resumed" in notes[0]
    if damage == "missing index":
        assert f"{FILE} is missing" in notes[0]
        return
    assert shard.name in notes[0]
    assert not (tmp_path / FILE).exists()
    assert (tmp_path / f"{FILE}.damaged").exists()
    assert shard.with_name(f"{shard.name}.damaged").exists() == (damage != "missing shard")
    save_checkpoint(tmp_path, checkpoint(6))
    assert same(read_checkpoint(tmp_path / FILE), checkpoint(6))
    assert same(read_checkpoint(tmp_path / PREVIOUS), checkpoint(5))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"first": 1}, "its shards do not follow each other"),
        ({"file": "../checkpoint-00000005-0of1.safetensors"}, "a shard lies elsewhere"),
        ({"stop": 3}, "it has other rows than the index says"),
    ],
    ids=["gap", "elsewhere", "rows"],
)
def test_an_index_that_makes_no_sense_is_refused_whatever_its_checksum(
    changes: dict[str, Any], why: str, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    shard = write_shard(tmp_path / "run", 5, checkpoint(5).tensors, range(2), (0, 1))
    shutil.copy(tmp_path / "run" / shard.file, tmp_path)
    write_index(tmp_path / "run", 5, SETTINGS, [dataclasses.replace(shard, **changes)])
    with pytest.raises(FastDMError, match=rf"is damaged \({why}\)"):
        read_checkpoint(tmp_path / "run" / FILE)


def test_shards_without_any_index_are_said_to_be_of_no_use(tmp_path: Path) -> None:
    """As a run leaves them that is killed while it writes its first checkpoint."""
    write_shard(tmp_path, 5, checkpoint(5).tensors, range(2), (0, 1))
    notes: list[str] = []
    assert load_checkpoint(tmp_path, SETTINGS, note=notes.append) is None
    assert len(notes) == 1
    assert "checkpoint.json is missing" in notes[0]
    assert "starts over" in notes[0]


def test_files_of_the_format_before_are_removed_once_there_are_two_of_this_one(tmp_path: Path) -> None:
    for name in SINGLE_FILES:
        (tmp_path / name).write_bytes(b"old")
    save_checkpoint(tmp_path, checkpoint(1))
    assert all((tmp_path / name).exists() for name in SINGLE_FILES)
    save_checkpoint(tmp_path, checkpoint(2))
    assert not any((tmp_path / name).exists() for name in SINGLE_FILES)


def test_a_checkpoint_of_the_format_before_still_opens(tmp_path: Path) -> None:
    old = checkpoint(5)
    tensors = dict(old.tensors)
    metadata = {
        "format": SINGLE_FORMATS[1],
        "iteration": "5",
        "settings": SETTINGS,
        "crc32": str(crc32(tensors["a"], tensors["b"])),
    }
    save_file(tensors, tmp_path / SINGLE_FILES[0], metadata)
    loaded = load_checkpoint(tmp_path, SETTINGS)
    assert loaded is not None
    assert same(loaded, old)
    with_more = json.dumps({**json.loads(SETTINGS), "factor": 1})
    assert load_checkpoint(tmp_path, with_more, defaults={"factor": 1}) is not None
    with pytest.raises(FastDMError, match=r"factor was 1 and is 2\)"):
        load_checkpoint(tmp_path, json.dumps({**json.loads(SETTINGS), "factor": 2}), defaults={"factor": 1})


@pytest.mark.parametrize(
    "changes",
    [{"iteration": "-1"}, {"iteration": "9" * 5000}, {"settings": "[" * 100_000}, {"settings": "3"}, {"format": "x"}],
    ids=lambda changes: next(iter(changes)),
)
def test_what_makes_no_sense_is_refused_in_a_sentence(changes: dict[str, str], tmp_path: Path) -> None:
    tensors = dict(checkpoint(5).tensors)
    metadata = {
        "format": SINGLE_FORMATS[1], "iteration": "5", "settings": SETTINGS,
        "crc32": str(crc32(tensors["a"], tensors["b"])),
    }  # fmt: skip
    save_file(tensors, tmp_path / SINGLE_FILES[0], {**metadata, **changes})
    with pytest.raises(FastDMError, match=f"the checkpoint .*{SINGLE_FILES[0]} is damaged"):
        load_checkpoint(tmp_path, SETTINGS)


def test_a_disk_that_fills_at_any_byte_costs_no_checkpoint(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, checkpoint(3))
    size = max(path.stat().st_size for path in tmp_path.iterdir())
    save_checkpoint(tmp_path, checkpoint(1))
    save_checkpoint(tmp_path, checkpoint(2))
    for fits in range(size):
        with files_of_at_most(fits), pytest.raises(Exception, match=r"File too large"):
            save_checkpoint(tmp_path, checkpoint(3))
        assert not list(tmp_path.glob(".*"))
        assert same(read_checkpoint(tmp_path / FILE), checkpoint(2))
        assert same(read_checkpoint(tmp_path / PREVIOUS), checkpoint(1))
    with files_of_at_most(size):
        save_checkpoint(tmp_path, checkpoint(3))
    assert same(read_checkpoint(tmp_path / FILE), checkpoint(3))


@pytest.mark.parametrize("fails", [0, 1], ids=["shard", "index"])
def test_a_disk_that_is_found_full_late_costs_no_checkpoint(
    fails: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """File systems may take every byte, and say only when asked that not all had room."""
    save_checkpoint(tmp_path, checkpoint(1))
    save_checkpoint(tmp_path, checkpoint(2))
    calls: list[int] = []

    def sync(file: int) -> None:
        calls.append(file)
        if len(calls) > fails:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", sync)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(tmp_path, checkpoint(3))
    assert same(read_checkpoint(tmp_path / FILE), checkpoint(2))
    assert same(read_checkpoint(tmp_path / PREVIOUS), checkpoint(1))


def test_a_disk_that_fills_at_any_byte_of_a_run_is_a_sentence_and_can_be_resumed(tmp_path: Path) -> None:
    dataset = random_dataset([4, 4], shape=(1, 8, 8))
    options = {"ipc": 1, "batch_real": 2, "network": "ConvNetD1", "device": "cpu", "iterations": 4, "save_every": 2}
    whole = fastdm.condense(dataset, **options, save_path=tmp_path / "whole")
    largest = max(path.stat().st_size for path in (tmp_path / "whole").iterdir())
    stopped = []
    for fits in [*range(0, largest, 211), largest]:
        folder = tmp_path / f"{fits}"
        try:
            with files_of_at_most(fits):
                fastdm.condense(dataset, **options, save_path=folder)
        except FastDMError as error:
            stopped.append(str(error))
        assert not list(folder.glob(".*"))
        resumed = fastdm.condense(dataset, **options, save_path=folder, resume=True)
        assert torch.equal(resumed.images, whole.images)
    assert len(stopped) > 3
    assert all("can no longer be written" in text and "File too large" in text for text in stopped)
    assert not any("\n" in text for text in stopped)


def test_a_folder_in_place_of_a_file_of_the_run_is_named(tmp_path: Path) -> None:
    options = {"ipc": 1, "batch_real": 2, "network": "ConvNetD1", "device": "cpu", "iterations": 2}
    (tmp_path / "log.jsonl").mkdir()
    with pytest.raises(FastDMError, match="Is a directory") as found:
        fastdm.condense(random_dataset([4, 4], shape=(1, 8, 8)), **options, save_path=tmp_path, overwrite=True)
    assert "free some space" not in str(found.value)
