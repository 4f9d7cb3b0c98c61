"""What a checkpoint says is what was saved, or it is refused; and a full disk costs nothing that was there."""

import json
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import fastdm
from bench.baselines.public_step import random_dataset
from fastdm.errors import FastDMError
from fastdm.runs.checkpoint import (
    FILE,
    PREVIOUS,
    UNCHECKED_FORMAT,
    Checkpoint,
    load_checkpoint,
    read_checkpoint,
    save_checkpoint,
)
from fastdm.system.files import crc32

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


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Let writing beyond `size` bytes of a file fail, as on a disk that fills there (with EFBIG in place of ENOSPC)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_no_changed_byte_changes_what_a_checkpoint_says(tmp_path: Path) -> None:
    saved = checkpoint(7)
    save_checkpoint(tmp_path, saved)
    content = (tmp_path / FILE).read_bytes()
    refused = 0
    for position in range(len(content)):
        for bit in (0, 3, 6):
            damaged = bytearray(content)
            damaged[position] ^= 1 << bit
            (tmp_path / "damaged").write_bytes(damaged)
            try:
                assert same(read_checkpoint(tmp_path / "damaged"), saved)
            except FastDMError:
                refused += 1
    assert refused > 2.8 * len(content)  # but for spaces and the like


def test_a_checkpoint_of_the_format_before_still_opens(tmp_path: Path) -> None:
    old = checkpoint(5)
    tensors = dict(old.tensors)
    metadata = {
        "format": UNCHECKED_FORMAT,
        "iteration": "5",
        "settings": SETTINGS,
        "crc32": str(crc32(tensors["a"], tensors["b"])),
    }
    save_file(tensors, tmp_path / FILE, metadata)
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
        "format": UNCHECKED_FORMAT, "iteration": "5", "settings": SETTINGS,
        "crc32": str(crc32(tensors["a"], tensors["b"])),
    }  # fmt: skip
    save_file(tensors, tmp_path / FILE, {**metadata, **changes})
    with pytest.raises(FastDMError, match=f"the checkpoint .*{FILE} is damaged"):
        load_checkpoint(tmp_path, SETTINGS)


def test_a_disk_that_fills_at_any_byte_costs_no_checkpoint(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, checkpoint(1))
    save_checkpoint(tmp_path, checkpoint(2))
    size = (tmp_path / FILE).stat().st_size
    for fits in range(size):
        with files_of_at_most(fits), pytest.raises(Exception, match=r"File too large"):
            save_checkpoint(tmp_path, checkpoint(3))
        assert sorted(os.listdir(tmp_path)) == [PREVIOUS, FILE]
        assert same(read_checkpoint(tmp_path / FILE), checkpoint(2))
        assert same(read_checkpoint(tmp_path / PREVIOUS), checkpoint(1))
    with files_of_at_most(size):
        save_checkpoint(tmp_path, checkpoint(3))
    assert same(read_checkpoint(tmp_path / FILE), checkpoint(3))


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
