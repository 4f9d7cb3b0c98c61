"""What is seen of a run on its way."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import fastdm
from fastdm.applications import experiments, watch
from fastdm.applications.experiments import run_experiments
from fastdm.condensation.settings import Settings
from fastdm.data import Dataset
from fastdm.errors import FastDMError
from fastdm.evaluation.outcome import Evaluation
from fastdm.evaluation.protocol import Protocol
from fastdm.runs.options import RunOptions
from fastdm.synthetic.synthetic_set import SyntheticSet
from tests.oracles import random_dataset

CPU = torch.device("cpu")
PROTOCOL = Protocol(["MLP"], "none", num_eval=2, epochs=1)


@pytest.fixture
def dataset() -> Dataset:
    dataset = random_dataset([6, 6], shape=(3, 8, 8))
    return dataclasses.replace(dataset, test=dataset.train)


def run(dataset: Dataset, folder: Path, **options: Any) -> list[str]:
    """The titles that are reported."""
    settings = Settings(ipc=1, iterations=6, batch_real=4, network="ConvNetD1", precision="fp32").resolve(dataset, CPU)
    reports: list[str] = []
    names = ("resume", "tensorboard", "picture_every")
    of_runs = RunOptions(**{name: options.pop(name) for name in names if name in options})
    options = {"num_exp": 1, "protocol": PROTOCOL, "options": of_runs, **options}
    run_experiments(
        dataset, settings, device=CPU, save_path=folder, report=lambda title, _: reports.append(title), **options
    )
    return reports


def test_pictures_have_the_public_names_and_evaluations_change_nothing(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "PICTURE_EVERY", 4)
    reports = run(dataset, tmp_path / "a", eval_every=2)
    assert reports == ["experiment 0, iteration 2", "experiment 0, iteration 4", "experiment 0"]
    pictures = {path.name for path in (tmp_path / "a").glob("vis_*.png")}
    assert pictures == {f"vis_DM_random_ConvNetD1_1ipc_exp0_iter{iteration}.png" for iteration in (0, 4, 6)}
    folder = tmp_path / "a" / "DM_random_ConvNetD1_1ipc_exp0"
    lines = [json.loads(line) for line in (folder / "evaluations.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == [2, 4]
    assert len(lines[0]["accuracies"]["MLP"]) == 2

    assert run(dataset, tmp_path / "b") == ["experiment 0"]
    one, other = (
        SyntheticSet.load(tmp_path / each / folder.name / "synthetic.safetensors").images for each in ("a", "b")
    )
    assert torch.equal(one, other)


def test_half_a_line_of_a_killed_run_is_dropped(dataset: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "evaluations.jsonl"
    path.write_text('{"iteration": 1, "mean": {}, "accuracies": {}}\n{"iteration": 2, "me')
    watch.Watch(dataset, CPU, tmp_path, tmp_path, print)._record(4, Evaluation({"MLP": [0.5]}))
    assert [json.loads(line)["iteration"] for line in path.read_text().splitlines()] == [1, 4]


def test_evaluations_on_the_way_need_networks(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(FastDMError, match="eval_every needs networks to evaluate with"):
        run(dataset, tmp_path / "a", eval_every=2, protocol=None)
    assert not (tmp_path / "a").exists()


def test_two_processes_cannot_write_the_same_results(dataset: Dataset, tmp_path: Path) -> None:
    def intrude(*_: object) -> Evaluation:
        with pytest.raises(FastDMError, match=r"DM_random_ConvNetD1_1ipc… is in use by another process"):
            run(dataset, tmp_path, resume=True)
        return Evaluation({"MLP": [0.5]})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiments, "measure", lambda *_, **__: intrude())
        assert run(dataset, tmp_path) == ["experiment 0"]
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("recorded", [False, True], ids=["before", "after"])
def test_an_evaluation_that_was_stopped_is_made_when_the_run_goes_on(
    recorded: bool, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes the longest, and is what a stop most likely meets: the checkpoint is of that very iteration."""
    look = watch.Watch.look

    def stop(self: watch.Watch, iteration: int, synthetic: SyntheticSet) -> None:
        if recorded or iteration != 2:
            look(self, iteration, synthetic)
        if iteration == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(watch.Watch, "look", stop)
        with pytest.raises(KeyboardInterrupt):
            run(dataset, tmp_path, eval_every=2)
    missed = [] if recorded else ["experiment 0, iteration 2"]
    assert run(dataset, tmp_path, eval_every=2, resume=True) == [*missed, "experiment 0, iteration 4", "experiment 0"]
    path = tmp_path / "DM_random_ConvNetD1_1ipc_exp0" / "evaluations.jsonl"
    assert [json.loads(line)["iteration"] for line in path.read_text().splitlines()] == [2, 4]


def test_a_stop_during_the_evaluation_says_what_is_there(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> Evaluation:
        raise KeyboardInterrupt

    monkeypatch.setattr(experiments, "measure", stop)
    with pytest.raises(KeyboardInterrupt) as stopped:
        run(dataset, tmp_path)
    assert stopped.value.__notes__ == [f"condensed sets are in {tmp_path / 'DM_random_ConvNetD1_1ipc_exp0'}"]


def test_tensorboard_shows_losses_accuracies_and_pictures(dataset: Dataset, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(dataset, tmp_path, eval_every=4, tensorboard=True, picture_every=3)
    folder = tmp_path / "DM_random_ConvNetD1_1ipc_exp0"
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    log = [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]
    losses = events.Scalars("loss")
    assert [event.step for event in losses] == list(range(6))
    assert [event.value for event in losses] == pytest.approx(log, rel=1e-6)
    assert [event.step for event in events.Scalars("accuracy/MLP")] == [4, 6]
    assert [event.step for event in events.Images("synthetic images")] == [3, 6]


def test_tensorboard_needs_a_folder_and_to_be_installed(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(FastDMError, match="tensorboard needs a save_path"):
        fastdm.condense(dataset, 1, tensorboard=True, device="cpu")
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(FastDMError, match="pip install tensorboard"):
        fastdm.condense(dataset, 1, tensorboard=True, device="cpu", save_path=tmp_path)
