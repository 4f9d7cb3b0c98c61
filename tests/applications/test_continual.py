"""Classes that come in steps, and a memory of a few images of each."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from fastdm.applications import continual
from fastdm.applications.continual import Continual, class_order, curves, run_continual, table
from fastdm.condensation.settings import Settings
from fastdm.data import Dataset, open_dataset
from fastdm.errors import FastDMError
from fastdm.evaluation.protocol import Protocol
from fastdm.synthetic.synthetic_set import SyntheticSet

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return open_dataset("digits")


def job(dataset: Dataset, **options: Any) -> Continual:
    settings = Settings(ipc=2, iterations=2, batch_real=8, network="ConvNetD1", seed=3).resolve(dataset, CPU)
    protocol = options.pop("protocol", Protocol(["ConvNetD1"], "none", num_eval=2, epochs=3, seed=3))
    return Continual(dataset, settings, protocol, **{"orders": 1, "herding_epochs": 1, **options})


def test_the_orders_are_those_of_numpy_s_old_generator() -> None:
    """What numpy.random.seed(0), then numpy.random.permutation(10) gives, as the public code has it; and seed 1."""
    assert class_order(10, 0) == [2, 8, 4, 9, 1, 6, 7, 3, 0, 5]
    assert class_order(10, 1) == [2, 9, 6, 4, 0, 3, 1, 7, 8, 5]


def test_memory_and_tests_grow_by_the_classes_of_a_step(
    digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[tuple[str, ...], tuple[str, ...], int, int]] = []
    measure = continual.measure

    def look(train: SyntheticSet, dataset: Dataset, protocol: Protocol, *args: Any, **options: Any) -> Any:
        assert dataset.test is not None
        seen.append((train.class_names, dataset.class_names, len(dataset.test), protocol.seed))
        return measure(train, dataset, protocol, *args, **options)

    monkeypatch.setattr(continual, "measure", look)
    reported: list[Mapping[str, Any]] = []
    what = job(digits, methods=("random",), steps=5, orders=2)
    records = run_continual(what, CPU, save_path=tmp_path, report=reported.append)
    for order in range(2):
        names = [str(label) for label in class_order(10, order)]
        for step in range(5):
            classes = tuple(names[: 2 * step + 2])
            assert seen[5 * order + step] == (classes, classes, 36 * len(classes), 3 + order)
        chosen = SyntheticSet.load(tmp_path / f"random_order{order}_step0.safetensors")
        assert chosen.settings["seed"] == 3 + order
    assert records == reported
    assert [(record["order"], record["step"], record["classes"]) for record in records[:2]] == [(0, 0, 2), (0, 1, 4)]
    assert all(len(record["accuracies"]) == 2 for record in records)


def test_methods_are_drawn_side_by_side_and_resumed(digits: Dataset, tmp_path: Path) -> None:
    first = run_continual(job(digits, methods=("DM",), steps=2), CPU, save_path=tmp_path)
    with pytest.raises(FastDMError, match=r"continual.json is there already"):
        run_continual(job(digits, methods=("random",), steps=2), CPU, save_path=tmp_path)
    both = run_continual(job(digits, methods=("DM", "herding"), steps=2), CPU, save_path=tmp_path, resume=True)
    assert both[:2] == first
    assert [record["method"] for record in both] == ["DM", "DM", "herding", "herding"]
    assert json.loads((tmp_path / "continual.json").read_text())["results"] == both
    assert [line.name for line in curves(both)] == ["DM", "herding"]
    with Image.open(tmp_path / "continual.png") as picture:
        assert picture.width > 1000
    with pytest.raises(FastDMError, match="begun with other settings"):
        run_continual(job(digits, methods=("DM",), steps=5), CPU, save_path=tmp_path, resume=True)


@pytest.mark.parametrize("method", continual.METHODS)
def test_what_is_resumed_ends_like_what_was_not_interrupted(
    method: str, digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    what = job(digits, methods=(method,), steps=2)
    whole = run_continual(what, CPU, save_path=tmp_path / "whole")
    measure, calls = continual.measure, iter(range(9))

    def stop(*args: Any, **options: Any) -> Any:
        if next(calls) == 1:
            raise KeyboardInterrupt
        return measure(*args, **options)

    monkeypatch.setattr(continual, "measure", stop)
    with pytest.raises(KeyboardInterrupt):
        run_continual(what, CPU, save_path=tmp_path / "parts")
    assert run_continual(what, CPU, save_path=tmp_path / "parts", resume=True) == whole


def test_another_normalisation_is_another_job(digits: Dataset, tmp_path: Path) -> None:
    run_continual(job(digits, methods=("random",), steps=2), CPU, save_path=tmp_path)
    other = dataclasses.replace(digits, mean=(0.5,), std=(0.25,))
    with pytest.raises(FastDMError, match=r"mean was \[.*\] and is \[0\.5\]; std was"):
        run_continual(job(other, methods=("random",), steps=2), CPU, save_path=tmp_path, resume=True)
    file = tmp_path / "continual.json"  # of an earlier version, which did not say
    content = json.loads(file.read_text())
    content["settings"].pop("mean"), content["settings"].pop("std")
    file.write_text(json.dumps(content))
    run_continual(job(digits, methods=("random",), steps=2), CPU, save_path=tmp_path, resume=True)


def test_what_an_interrupted_job_left_is_not_taken_for_that_of_another(
    digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped before the first record, when only a set of the first step is there."""

    def stop(*args: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(continual, "measure", stop)
        with pytest.raises(KeyboardInterrupt):
            run_continual(job(digits, methods=("random",), steps=2), CPU, save_path=tmp_path)
    other = job(digits, methods=("random",), steps=2)
    other = dataclasses.replace(other, settings=dataclasses.replace(other.settings, ipc=5))
    with pytest.raises(FastDMError, match="ipc was 2 and is 5"):
        run_continual(other, CPU, save_path=tmp_path, resume=True)
    whole = run_continual(other, CPU, save_path=tmp_path / "whole")
    assert run_continual(other, CPU, save_path=tmp_path) == whole  # nothing was measured: there is nothing to lose


def test_an_interrupted_overwriting_is_what_is_resumed(
    digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_continual(job(digits, methods=("random",), steps=2), CPU, save_path=tmp_path)
    other = dataclasses.replace(job(digits, methods=("random",), steps=2), herding_epochs=2)

    def stop(*args: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(continual, "measure", stop)
        with pytest.raises(KeyboardInterrupt):
            run_continual(other, CPU, save_path=tmp_path, overwrite=True)
    assert len(run_continual(other, CPU, save_path=tmp_path, resume=True)) == 2


def test_the_table_is_over_orders() -> None:
    records = [
        {"method": "DM", "order": order, "step": 0, "classes": 2, "accuracies": accuracies}
        for order, accuracies in enumerate(([0.5, 0.7], [0.8, 0.8]))
    ]
    assert table(records) == {"DM": {2: (pytest.approx(0.7), pytest.approx(0.1))}}
    (line,) = curves(records)
    assert (line.x, line.low, line.high) == ([2], [pytest.approx(60)], [pytest.approx(80)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 3}, "steps is 3, but 10 classes cannot be divided evenly"),
        ({"steps": 0}, "steps is 0"),
        ({"orders": 0}, "orders is 0"),
        ({"methods": ()}, "there is no method"),
        ({"methods": ("DC",)}, "method is 'DC'; it must be one of 'DM', 'random', 'herding'"),
        ({"steps": 10, "methods": ("herding",)}, "at least two in each"),
        ({"protocol": Protocol(["ResNet18BN"], "none", batch_train=7)}, "cannot be trained on a single image"),
    ],
)
def test_what_makes_no_sense(options: dict[str, Any], message: str, digits: Dataset) -> None:
    with pytest.raises(FastDMError, match=message):
        job(digits, **options)
