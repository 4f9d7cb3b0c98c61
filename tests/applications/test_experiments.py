"""Several sets, their evaluations and the public code's files, also of runs that stop and go on."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from fastdm.applications import experiments
from fastdm.applications.experiments import read_evaluation, run_experiments
from fastdm.applications.run_summary import summarise_run
from fastdm.condensation.settings import Settings
from fastdm.data import Dataset
from fastdm.errors import FastDMError
from fastdm.evaluation.measure import measure
from fastdm.evaluation.outcome import Evaluation
from fastdm.evaluation.protocol import Protocol
from fastdm.runs.options import RunOptions
from fastdm.synthetic.initial import random_selection
from fastdm.synthetic.public_file import read_public, write_public
from fastdm.synthetic.synthetic_set import SyntheticSet
from tests.oracles import random_dataset

CPU = torch.device("cpu")
RESULT = "res_DM_random_ConvNetD1_1ipc.pt"


@pytest.fixture
def dataset() -> Dataset:
    dataset = random_dataset([6, 6], shape=(3, 8, 8))
    return dataclasses.replace(dataset, test=dataset.train)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The seeds of the evaluations that are made, which find accuracies without training."""
    seeds: list[int] = []

    def found(_: Any, dataset: Dataset, protocol: Protocol, device: torch.device, *, progress: bool) -> Evaluation:
        seeds.append(protocol.seed)
        return Evaluation({name: [0.25 * protocol.seed] * protocol.num_eval for name in protocol.networks})

    monkeypatch.setattr(experiments, "measure", found)
    return seeds


def run(dataset: Dataset, folder: Path, protocol: Protocol | None, **options: Any) -> dict[str, list[float]]:
    """The accuracies that the public code's file holds afterwards."""
    settings = Settings(ipc=1, iterations=2, batch_real=4, network="ConvNetD1", seed=1)
    changes = {name: options.pop(name) for name in ("iterations", "momentum") if name in options}
    settings = dataclasses.replace(settings, **changes).resolve(dataset, CPU)
    of_runs = RunOptions(**{name: options.pop(name) for name in RUN_OPTIONS & options.keys()})
    options = {"num_exp": 2, "report": lambda title, evaluation: None, **options}
    path = run_experiments(dataset, settings, protocol, CPU, save_path=folder, options=of_runs, **options)
    assert path == folder / RESULT
    return read_public(path).accuracies


RUN_OPTIONS = {field.name for field in dataclasses.fields(RunOptions)}
PROTOCOL = Protocol(["MLP"], "none", num_eval=2, epochs=1, seed=1)


def test_seeds_files_and_reports(dataset: Dataset, tmp_path: Path, measured: list[int]) -> None:
    reports: list[str] = []
    accuracies = run(dataset, tmp_path, PROTOCOL, report=lambda title, evaluation: reports.append(title))
    assert accuracies == {"MLP": [0.25, 0.25, 0.5, 0.5]}
    assert measured == [1, 2]
    assert reports == ["experiment 0", "experiment 1"]
    sets = SyntheticSet.load_all(tmp_path / RESULT, dataset=dataset)
    folders = [tmp_path / f"DM_random_ConvNetD1_1ipc_exp{experiment}" for experiment in (0, 1)]
    for synthetic, folder in zip(sets, folders, strict=True):
        assert torch.equal(synthetic.images, SyntheticSet.load(folder / "synthetic.safetensors").images)
    assert not torch.equal(sets[0].images, sets[1].images)
    assert json.loads((folders[1] / "evaluation.json").read_text())["protocol"]["seed"] == 2
    assert (tmp_path / "vis_DM_random_ConvNetD1_1ipc_exp1_iter2.png").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"networks": ["VGG11"]}, "VGG11 cannot take 8x8 images"),
        ({"networks": ["MLP", "Conv"]}, "unknown network 'Conv'"),
        ({"strategy": "blur"}, "unknown augmentation 'blur'"),
        ({"num_eval": -1}, "num_eval is -1"),
        ({"epochs": 0}, "epochs is 0"),
        ({"batch_train": 0}, "batch_train is 0"),
        ({"lr_net": -0.1}, "lr_net is -0.1"),
        ({"networks": ["ResNet18BN"], "batch_train": 1}, "ResNet18BN cannot be trained on a single image"),
    ],
)
def test_an_evaluation_is_checked_before_the_first_iteration(
    change: dict[str, Any], message: str, dataset: Dataset, tmp_path: Path
) -> None:
    with pytest.raises(FastDMError, match=message):
        run(dataset, tmp_path / "result", dataclasses.replace(PROTOCOL, **change))
    assert not (tmp_path / "result").exists()


def test_a_set_without_a_test_part(dataset: Dataset, tmp_path: Path) -> None:
    without = dataclasses.replace(dataset, test=None)
    with pytest.raises(FastDMError, match=r"no test part .*--num_eval 0"):
        run(without, tmp_path / "result", PROTOCOL)
    assert not (tmp_path / "result").exists()
    assert run(without, tmp_path / "result", None) == {}


def test_the_sets_are_saved_before_they_are_evaluated(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **options: object) -> float:
        raise RuntimeError("out of luck")

    monkeypatch.setattr("fastdm.evaluation.trial.classify_all", fail)
    with pytest.raises(RuntimeError, match="out of luck"):
        run(dataset, tmp_path, PROTOCOL)
    file = read_public(tmp_path / RESULT)
    ((images, _),), accuracies = file.sets, file.accuracies
    assert images.shape == (2, 3, 8, 8)
    assert accuracies == {}


def test_resume_keeps_what_was_measured(dataset: Dataset, tmp_path: Path, measured: list[int]) -> None:
    accuracies = run(dataset, tmp_path, PROTOCOL)
    reports: list[str] = []
    again = run(dataset, tmp_path, PROTOCOL, resume=True, report=lambda title, evaluation: reports.append(title))
    assert again == accuracies
    assert measured == [1, 2]  # none was repeated
    assert reports == ["experiment 0, measured before", "experiment 1, measured before"]
    assert run(dataset, tmp_path, None, resume=True) == accuracies


def test_resume_measures_anew_by_another_protocol_and_of_other_sets(
    dataset: Dataset, tmp_path: Path, measured: list[int]
) -> None:
    run(dataset, tmp_path, PROTOCOL)
    more = dataclasses.replace(PROTOCOL, num_eval=3)
    assert run(dataset, tmp_path, more, resume=True) == {"MLP": [0.25] * 3 + [0.5] * 3}
    assert measured == [1, 2, 1, 2]
    run(dataset, tmp_path, more, resume=True, iterations=3)
    assert measured == [1, 2, 1, 2, 1, 2]
    assert run(dataset, tmp_path, None, resume=True, iterations=4) == {}  # those were of sets that are no more


@pytest.mark.parametrize("how", [{"overwrite": True, "momentum": 0.9}, {"resume": True, "iterations": 3}])
def test_what_was_measured_of_a_set_goes_with_it(
    how: dict[str, Any], dataset: Dataset, tmp_path: Path, measured: list[int]
) -> None:
    run(dataset, tmp_path, PROTOCOL, num_exp=1)
    folder = tmp_path / "DM_random_ConvNetD1_1ipc_exp0"
    (folder / "evaluations.jsonl").write_text("")
    (folder / "baselines.json").write_text("{}")
    assert summarise_run(folder)["accuracies"] == {"MLP": [0.25, 0.25]}
    run(dataset, tmp_path, None, num_exp=1, **how)
    assert "accuracies" not in summarise_run(folder)
    for name in ("evaluations.jsonl", "baselines.json"):
        assert (folder / name).exists() == ("resume" in how)  # the set on the way is the same, and the real images


def test_a_resumed_run_that_stops_again_loses_no_set(
    dataset: Dataset, tmp_path: Path, measured: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    accuracies = run(dataset, tmp_path, PROTOCOL)

    def stop(*args: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(dataset, tmp_path, PROTOCOL, resume=True, report=stop)  # after the first of two
    file = read_public(tmp_path / RESULT)
    sets, kept = file.sets, file.accuracies
    assert len(sets) == 2
    assert kept == accuracies


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"set_crc32": "1"}'])
def test_a_damaged_evaluation_is_measured_anew(content: str, dataset: Dataset, tmp_path: Path) -> None:
    synthetic = random_selection(dataset, 1)
    (tmp_path / experiments.FILE).write_text(content)
    assert read_evaluation(tmp_path, synthetic) is None
    found = measure(synthetic, dataset, PROTOCOL, CPU)
    experiments.write_evaluation(tmp_path, synthetic, PROTOCOL, found, 1.5)
    assert read_evaluation(tmp_path, synthetic, PROTOCOL) == found
    assert read_evaluation(tmp_path, synthetic, dataclasses.replace(PROTOCOL, seed=9)) is None


def test_a_set_of_other_settings_never_joins_the_others(dataset: Dataset, tmp_path: Path) -> None:
    run(dataset, tmp_path, None)
    shutil.rmtree(tmp_path / "DM_random_ConvNetD1_1ipc_exp0")
    with pytest.raises(FastDMError, match="momentum"):
        run(dataset, tmp_path, None, resume=True, momentum=0.9)
    (only,) = read_public(tmp_path / RESULT).about["settings"]
    assert (only["seed"], only["momentum"]) == (1, 0.9)


def test_a_result_of_others_is_not_replaced_unasked(dataset: Dataset, tmp_path: Path) -> None:
    """The public code, too, writes to a folder called result by default."""
    write_public(tmp_path / RESULT, [(torch.zeros(2, 3, 8, 8), torch.arange(2))], {"ConvNet": [0.5]})
    before = (tmp_path / RESULT).read_bytes()
    for resume in (False, True):
        with pytest.raises(FastDMError, match=rf"{RESULT} is there already, .*--overwrite"):
            run(dataset, tmp_path, None, resume=resume)
        assert (tmp_path / RESULT).read_bytes() == before
        assert [path.name for path in tmp_path.iterdir()] == [RESULT]
    run(dataset, tmp_path, None, overwrite=True)
    assert len(read_public(tmp_path / RESULT).sets) == 2
