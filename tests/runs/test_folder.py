"""What else lies in the folder that a run is given."""

import itertools
import json
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import fastdm
from fastdm.data.pool import Dataset
from fastdm.errors import FastDMError
from fastdm.runs.run import _files
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


def test_nothing_is_left_of_iterations_that_the_checkpoint_does_not_hold(dataset: Dataset, tmp_path: Path) -> None:
    """They may never come again, and where sums are not repeatable they come otherwise."""
    fastdm.condense(dataset, **SMALL, save_path=tmp_path, picture_every=1)
    lines = [json.dumps({"iteration": iteration}) + "\n" for iteration in (1, 2, 3)]
    (tmp_path / "evaluations.jsonl").write_text("".join(lines) + '{"iter')
    for name in ("iteration_000003.png", "iteration_1000000.png", "iteration_mine.png"):
        (tmp_path / name).touch()
    fastdm.condense(dataset, **SMALL, save_path=tmp_path, resume=True)
    assert (tmp_path / "evaluations.jsonl").read_text() == "".join(lines[:2])
    pictures = {path.name for path in tmp_path.glob("iteration_*")}
    assert pictures == {"iteration_000001.png", "iteration_000002.png", "iteration_mine.png"}


def test_a_picture_of_any_size_is_shown_in_tensorboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow opens no file of more than twice so many pixels: 50 images of 1,000 classes of 64x64 are too many."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
    dataset = random_dataset([4, 4], shape=(3, 64, 64))
    fastdm.condense(dataset, **SMALL, save_path=tmp_path, tensorboard=True, picture_every=1)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.width, event.height) for event in events.Images("synthetic images")] == [
        (1, 68, 134),
        (2, 68, 134),
    ]


def test_a_run_whose_removal_is_cut_short_can_be_resumed(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever has been removed by then."""
    whole = fastdm.condense(dataset, **SMALL, save_path=tmp_path / "whole", save_every=1)
    for count in range(len([*_files(tmp_path / "whole")])):
        folder = tmp_path / f"{count}"
        shutil.copytree(tmp_path / "whole", folder)

        def remove_some(folder: Path, count: int = count) -> None:
            for path in itertools.islice(_files(folder), count):
                path.unlink(missing_ok=True)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr("fastdm.runs.run._remove_run", remove_some)
            with pytest.raises(KeyboardInterrupt):
                fastdm.condense(dataset, **SMALL, save_path=folder, overwrite=True)
        # What is left of its checkpoints may be the one before, which a note says.
        with warnings.catch_warnings(action="ignore"):
            resumed = fastdm.condense(dataset, **SMALL, save_path=folder, resume=True)
        assert torch.equal(resumed.images, whole.images)
        assert (folder / "synthetic.safetensors").exists()


def test_pixels_that_are_not_finite_are_not_saved(dataset: Dataset, tmp_path: Path) -> None:
    """The loss of the iteration that spoils them is finite still."""
    with pytest.raises(FastDMError, match="a smaller lr_img keeps"):
        fastdm.condense(dataset, **SMALL, lr_img=1e38, save_path=tmp_path, save_every=1)
    assert not list(tmp_path.glob("checkpoint*"))


def test_a_run_is_not_overwritten_for_one_that_cannot_begin(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fastdm.condense(dataset, **SMALL, save_path=tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(FastDMError, match="TensorBoard is not installed"):
        fastdm.condense(dataset, **SMALL, save_path=tmp_path, overwrite=True, tensorboard=True)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_only_what_an_atomic_write_leaves_is_removed(tmp_path: Path) -> None:
    for name in (".log.jsonl.123.tmp", ".mine.tmp", ".cache.1a.tmp"):
        (tmp_path / name).touch()
    remove_unfinished(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {".mine.tmp", ".cache.1a.tmp"}
