"""What goes wrong with the files of one rank: named, and the checkpoint before it used without being asked."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import fastdm
from fastdm.runs.checkpoint import FILE, PREVIOUS
from fastdm.synthetic.synthetic_set import SyntheticSet
from tests.oracles import random_dataset
from tests.ranks import SIZES, SMALL, condense, said, start, wait

ITERATIONS = 8


def run(size: int, folder: Path, **options: Any) -> list[int | None]:
    return wait(start(size, condense, folder, {"iterations": ITERATIONS, **options}, folder=folder))


def resumed_alike(size: int, folder: Path, iterations: int = ITERATIONS) -> bool:
    """Whether a run that is resumed gives the images of a run of one process, and a log without gaps."""
    assert run(size, folder, iterations=iterations, resume=True) == [0] * size, said(folder)
    whole = fastdm.condense(random_dataset(SIZES, shape=(1, 8, 8)), iterations=iterations, **SMALL)
    logged = [json.loads(line)["iteration"] for line in (folder / "log.jsonl").read_text().splitlines()]
    assert logged == list(range(iterations))
    return torch.equal(SyntheticSet.load(folder / "synthetic.safetensors").images, whole.images)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run on two ranks with checkpoints of iterations 4 and 6."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    assert run(2, folder, iterations=6, save_every=4) == [0, 0], said(folder)
    return folder


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 4
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


SHARD = "checkpoint-00000006-1of2.safetensors"


@pytest.mark.parametrize(
    ("file", "damage"),
    [(SHARD, flip), (SHARD, cut), (SHARD, Path.unlink), (FILE, flip), (FILE, cut), (FILE, Path.unlink)],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_the_checkpoint_before_a_damaged_one_is_used(file: str, damage: Any, stopped: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(stopped, tmp_path / "run")
    damage(folder / file)
    assert resumed_alike(3, folder)
    first, *others = said(folder)
    assert file in first
    assert ("is missing" if damage is Path.unlink else "is damaged") in first
    assert f"iteration 4 is resumed from {folder / PREVIOUS}" in first
    assert not any(others)


def test_a_disk_that_is_full_at_one_rank_stops_all_and_costs_no_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    codes = run(3, folder, iterations=1000, save_every=4, pause=0.01, full_disk=(1, 9))
    assert codes == [2, 2, 2], said(folder)
    saved = json.loads((folder / FILE).read_text())["iteration"]
    assert saved in (4, 8)  # the second one may have been written before the disk was full
    for text in said(folder):
        assert "can no longer be written (File too large at rank 1)" in text
        assert f"the checkpoint of iteration {saved} is kept in {folder}" in text
        assert text.count("\n") == 1
    assert not list(folder.glob(".*.tmp"))
    assert resumed_alike(2, folder, saved + 2)
