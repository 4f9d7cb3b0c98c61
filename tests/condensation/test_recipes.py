"""Recipes, pools and settings beyond the paper's, from the call to the log."""

import dataclasses
import json
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch

import fastdm
from fastdm.condensation.build import build_step
from fastdm.condensation.recipes import recipe_settings
from fastdm.condensation.settings import Settings
from fastdm.data.pool import Dataset
from fastdm.errors import FastDMError
from fastdm.networks.trained import NetworkPool
from tests.oracles import random_dataset

RUN: dict[str, Any] = {"batch_real": 8, "iterations": 4, "device": "cpu", "precision": "fp32"}


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return random_dataset([20, 24, 22], (1, 8, 8))


@pytest.fixture(scope="module")
def pool(dataset: Dataset) -> NetworkPool:
    return fastdm.train_pool(dataset, networks=2, epochs=1, states=3, network="ConvNetD1", device="cpu")


def test_the_recipe_trained_sets_all_of_it(dataset: Dataset) -> None:
    settings = recipe_settings("trained", dataset, 10)
    chosen = (settings.partition, settings.strategy, settings.aug_mode, settings.batch_real, settings.networks)
    assert chosen == (2, "color_crop_cutout", "M", 128, "trained")
    assert (settings.ce_weight, recipe_settings("trained", dataset, 50).ce_weight) == (2.5, 0.5)
    assert recipe_settings("dm", dataset, 3) == Settings(ipc=3)
    odd = random_dataset([4, 4], (1, 9, 9))
    assert recipe_settings("trained", odd, 1).partition == 1


def test_single_settings_take_the_place_of_a_recipes(dataset: Dataset, pool: NetworkPool) -> None:
    made = fastdm.condense(dataset, 1, recipe="trained", pool=pool, ce_weight=1.0, **RUN)
    assert (made.settings["partition"], made.settings["ce_weight"], made.settings["iterations"]) == (2, 1.0, 4)
    assert made.settings["network"] == "ConvNetD1"
    assert made.partition == 2
    mean, std = dataset.mean[0], dataset.std[0]
    pixels = made.images * std + mean
    assert pixels.min() >= -1e-6
    assert pixels.max() <= 1 + 1e-6


def test_the_plan_counts_the_pool_of_networks_and_both_that_are_drawn_from_it(
    dataset: Dataset, pool: NetworkPool
) -> None:
    """In float32 a network takes as much as a snapshot of it: the pool's 2 × 3, the one that is matched in, and with a
    cross-entropy further on the one that classifies."""
    one = pool.weights[0, 0].nbytes
    cpu = torch.device("cpu")
    for ahead, held in ((0, 7), (6, 8)):
        settings = recipe_settings("trained", dataset, 1)
        settings = dataclasses.replace(settings, network=pool.network, ce_ahead=ahead).resolve(dataset, cpu)
        step, plan = build_step(dataset, settings, cpu, torch.float32, pool=pool)
        with closing(step):
            assert plan.networks_bytes == held * one


def test_the_parts_of_the_loss_are_logged_and_a_run_resumes(
    dataset: Dataset, pool: NetworkPool, tmp_path: Path
) -> None:
    run = {**RUN, "recipe": "trained", "pool": pool}
    whole = fastdm.condense(dataset, 1, save_path=tmp_path / "whole", **run)
    for line in map(json.loads, (tmp_path / "whole" / "log.jsonl").read_text().splitlines()):
        assert line["loss"] == pytest.approx(line["matching"] + 2.5 * line["cross_entropy"], rel=1e-5)
        assert line["cross_entropy"] > 0
    fastdm.condense(dataset, 1, save_path=tmp_path / "parts", **{**run, "iterations": 2})
    resumed = fastdm.condense(dataset, 1, save_path=tmp_path / "parts", resume=True, **run)
    assert torch.equal(resumed.images, whole.images)
    other = dataclasses.replace(pool, weights=pool.weights + 1)
    with pytest.raises(FastDMError, match="pool_crc32 was"):
        fastdm.condense(dataset, 1, save_path=tmp_path / "parts", resume=True, **{**run, "pool": other})


def test_a_plain_run_logs_one_loss(dataset: Dataset, tmp_path: Path) -> None:
    fastdm.condense(dataset, 1, save_path=tmp_path, network="ConvNetD1", **RUN)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [sorted(line) for line in lines] == [["iteration", "loss", "seconds"]] * 4


@pytest.mark.parametrize("objective", ["mean", "mmd", "cov"])
def test_a_small_step_lowers_the_loss_of_every_objective(dataset: Dataset, objective: str) -> None:
    """The same iteration twice, with the same draws, of canvases."""
    settings = Settings(
        ipc=1,
        batch_real=16,
        objective=objective,  # type: ignore[arg-type]
        partition=2,
        network="ConvNetD1",
        strategy="none",
        lr_img=1e-6,
        precision="fp32",
    ).resolve(dataset, torch.device("cpu"))
    step, _ = build_step(dataset, settings, torch.device("cpu"), torch.float32)
    with closing(step):
        assert step(0) > step(0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"networks": "trained"}, "networks is 'trained', but there is no pool"),
        ({"ce_weight": 1.0}, "the networks are random and cannot tell classes apart"),
        ({"objective": "men"}, "objective is 'men'; it must be one of 'mean', 'mmd', 'cov'"),
        ({"partition": 0}, "partition is 0"),
        ({"recipe": "best"}, "recipe is 'best'; it must be one of 'dm', 'trained'"),
        ({"recipe": "dm", "settings": Settings()}, "give settings or a recipe"),
    ],
)
def test_what_does_not_go_together_is_refused(dataset: Dataset, options: dict[str, Any], message: str) -> None:
    with pytest.raises(FastDMError, match=message):
        fastdm.condense(dataset, 1, **{**RUN, **options})


OTHERWISE = "of other images, or normalised otherwise"


def test_a_pool_of_another_data_set_is_named(dataset: Dataset, pool: NetworkPool, tmp_path: Path) -> None:
    run = {**RUN, "networks": "trained", "iterations": 1}
    other = dataclasses.replace(dataset, name="other")
    changed = dataclasses.replace(dataset.train, images=255 - dataset.train.images)
    for number, (data, expected) in enumerate(
        [
            (dataset, []),
            (other, [f"the networks of the pool were trained on {dataset.name}, not on other"]),
            (
                dataclasses.replace(dataset, train=changed),
                [f"the networks of the pool were trained on a data set {dataset.name} {OTHERWISE}"],
            ),
        ]
    ):
        fastdm.condense(data, 1, pool=pool, save_path=tmp_path / str(number), **run)
        notes = json.loads((tmp_path / str(number) / "about.json").read_text())["notes"]
        assert [note for note in notes if "pool" in note] == expected


def test_a_pool_that_does_not_fit_is_refused(dataset: Dataset, pool: NetworkPool) -> None:
    for options, message in (
        ({}, "a pool of networks is given, but networks is 'random'"),
        ({"networks": "trained", "network": "MLP"}, "network is 'MLP', but the pool holds ConvNetD1"),
    ):
        with pytest.raises(FastDMError, match=message):
            fastdm.condense(dataset, 1, pool=pool, **RUN, **options)
    with pytest.raises(FastDMError, match="pool is a int; it must be a NetworkPool"):
        fastdm.condense(dataset, 1, pool=3, networks="trained", **RUN)  # type: ignore[arg-type]
    other = random_dataset([9, 9], (1, 8, 8))
    with pytest.raises(FastDMError, match="the pool of networks has 3 classes"):
        fastdm.condense(other, 1, pool=pool, networks="trained", **RUN)
