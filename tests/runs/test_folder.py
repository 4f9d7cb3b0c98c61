"""What else lies in the folder that a run is given."""

from pathlib import Path
from typing import Any

import pytest

import fastdm
from fastdm.data.pool import Dataset
from fastdm.errors import FastDMError
from fastdm.system.files import remove_unfinished
from tests.oracles import random_dataset

SMALL: dict[str, Any] = {"ipc": 1, "iterations": 2, "batch_real": 8, "network": "ConvNetD1", "device": "cpu"}


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return random_dataset([12, 10], shape=(3, 8, 8))


@pytest.mark.parametrize("name", ["config.yaml", "settings.json", "log.jsonl", "tensorboard/events.out.tfevents.1"])
@pytest.mark.parametrize("resume", [False, True], ids=["new", "resumed"])
def test_files_that_no_run_has_left_are_not_touched(name: str, resume: bool, dataset: Dataset, tmp_path: Path) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text('{"theme": "mine"}')
    with pytest.raises(FastDMError, match=f"holds {name}, which would be replaced and is of no run"):
        fastdm.condense(dataset, **SMALL, save_path=tmp_path, resume=resume)
    assert path.read_text() == '{"theme": "mine"}'
    assert not (tmp_path / "about.json").exists()


def test_a_finished_set_without_its_checkpoints_is_not_made_again(dataset: Dataset, tmp_path: Path) -> None:
    fastdm.condense(dataset, **SMALL, save_path=tmp_path)
    for path in tmp_path.glob("checkpoint*"):
        path.unlink()
    with pytest.raises(FastDMError, match="holds a finished set, but no checkpoint to resume"):
        fastdm.condense(dataset, **SMALL, save_path=tmp_path, resume=True)
    assert (tmp_path / "synthetic.safetensors").exists()


def test_a_run_that_ended_before_its_first_checkpoint_is_one(dataset: Dataset, tmp_path: Path) -> None:
    fastdm.condense(dataset, **SMALL, save_path=tmp_path)
    for path in (*tmp_path.glob("checkpoint*"), tmp_path / "synthetic.safetensors"):
        path.unlink()
    fastdm.condense(dataset, **SMALL, save_path=tmp_path)


def test_only_what_an_atomic_write_leaves_is_removed(tmp_path: Path) -> None:
    for name in (".log.jsonl.123.tmp", ".mine.tmp", ".cache.1a.tmp"):
        (tmp_path / name).touch()
    remove_unfinished(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {".mine.tmp", ".cache.1a.tmp"}
