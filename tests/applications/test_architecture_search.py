"""Networks ranked by what they reach on proxies, compared with how they rank on the whole set."""

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastdm.applications.architecture_search import (
    PROXIES,
    WHOLE_SET,
    Search,
    run_search,
    search_space,
    spearman,
    summary,
)
from fastdm.condensation.settings import Settings
from fastdm.data import Dataset, open_dataset
from fastdm.data.subset import of_classes
from fastdm.errors import FastDMError
from fastdm.evaluation.outcome import Evaluation
from fastdm.evaluation.protocol import Protocol
from fastdm.networks.architectures import build_convnet, build_network, convnet_name, evaluation_pool

CPU = torch.device("cpu")
FOUR = search_space({"depth": [1], "width": [32], "activation": ["relu"], "norm": ["none", "instance"]}, 4)


@pytest.fixture(scope="module")
def digits() -> Dataset:
    """Three of them: 432 images to train on."""
    return of_classes(open_dataset("digits"), [0, 1, 4])


def job(dataset: Dataset, **options: Any) -> Search:
    settings = Settings(ipc=2, iterations=2, batch_real=8, network="ConvNetD1").resolve(dataset, CPU)
    protocol = Protocol(FOUR, "none", num_eval=1, epochs=5, lr_net=0.05)
    settings = options.pop("settings", settings)
    return Search(dataset, settings, **{"protocol": protocol, "networks": FOUR, "whole_set_epochs": 1, **options})


# --- the space -------------------------------------------------------------------------------------------------------


def test_the_space_is_the_paper_s() -> None:
    names = search_space()
    assert len(set(names)) == 4 * 4 * 3 * 5 * 3 == 720
    some = search_space({"depth": [2], "norm": ["batch", "none"]})
    properties = [name.split("-")[1:] for name in names]
    assert some == [
        name
        for name, (depth, _, _, norm, _) in zip(names, properties, strict=True)
        if depth == "d2" and norm in ("batch", "none")
    ]
    assert len(some) == 4 * 3 * 2 * 3


def test_a_name_builds_the_network_that_it_describes() -> None:
    name = convnet_name(2, 8, "leakyrelu", "group", "max")
    torch.manual_seed(0)
    named = build_network(name, channels=3, num_classes=5, image_size=8)
    torch.manual_seed(0)
    built = build_convnet(
        channels=3, num_classes=5, image_size=8, depth=2, width=8, activation="leakyrelu", norm="group", pool="max"
    )
    images = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(named(images), built(images))  # their memory formats differ
    assert evaluation_pool("S", "ConvNet-d2-w8-relu-batch-avg") == ["ConvNet-d2-w8-relu-instance-avg"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ConvNet-d2-w8-relu-spectral-avg", "unknown network 'ConvNet-d2-w8-relu-spectral-avg'"),
        ("ConvNet-d2-w30-relu-group-avg", "multiple of 4, not 30"),
        ("ConvNet-d4-w8-relu-none-avg", "ConvNet-d4-w8-relu-none-avg cannot take 8x8 images"),
    ],
)
def test_a_name_that_describes_nothing(name: str, message: str) -> None:
    with pytest.raises(FastDMError, match=message):
        build_network(name, channels=3, num_classes=5, image_size=8)


def test_some_networks_are_drawn_by_the_seed() -> None:
    some = search_space(count=12, seed=1)
    assert len(set(some)) == 12
    assert some == search_space(count=12, seed=1) != search_space(count=12, seed=2)
    assert [name for name in search_space() if name in some] == some
    for count in (1, 721):
        with pytest.raises(FastDMError, match=f"networks is {count}; it must be at least 2, and at most 720"):
            search_space(count=count)
    with pytest.raises(FastDMError, match="depth is 5; it must be one of 1, 2, 3, 4"):
        search_space({"depth": [5]})


# --- the search ------------------------------------------------------------------------------------------------------


def test_every_network_is_trained_on_every_proxy_and_kept(digits: Dataset, tmp_path: Path) -> None:
    reported: list[Mapping[str, Any]] = []
    found = run_search(job(digits), CPU, save_path=tmp_path, report=reported.append)
    assert [(record["proxy"], record["network"]) for record in reported] == [
        (proxy, name) for proxy in (*PROXIES, WHOLE_SET) for name in FOUR
    ]
    assert json.loads((tmp_path / "summary.json").read_text()) == found
    assert {name: of["images"] for name, of in found.items()} == {
        "condensed": 6,
        "random": 6,
        "early_stopped": len(digits.train),
        WHOLE_SET: len(digits.train),
    }
    assert found[WHOLE_SET]["spearman"] == pytest.approx(1)
    assert all(of["accuracy"] <= found[WHOLE_SET]["accuracy"] for of in found.values())
    assert all(of["seconds"] > 0 for of in found.values())
    again: list[Mapping[str, Any]] = []
    assert run_search(job(digits), CPU, save_path=tmp_path, report=again.append, resume=True) == found
    assert again == reported
    with pytest.raises(FastDMError, match=r"search.json is there already"):
        run_search(job(digits), CPU, save_path=tmp_path)


def test_a_search_goes_on_with_further_networks(digits: Dataset, tmp_path: Path) -> None:
    few = run_search(job(digits, networks=FOUR[:2], proxies=["random"]), CPU, save_path=tmp_path)
    more = run_search(job(digits, proxies=["random"]), CPU, save_path=tmp_path, resume=True)
    assert list(few) == list(more) == ["random", WHOLE_SET]
    records = json.loads((tmp_path / "search.json").read_text())["results"]
    assert len(records) == 8
    whole = run_search(job(digits, proxies=["random"]), CPU, save_path=tmp_path / "at once")
    assert {name: of["spearman"] for name, of in more.items()} == {name: of["spearman"] for name, of in whole.items()}


def test_another_normalisation_is_another_search(digits: Dataset, tmp_path: Path) -> None:
    run_search(job(digits, networks=FOUR[:2], proxies=["random"]), CPU, save_path=tmp_path)
    other = dataclasses.replace(digits, mean=(0.5,), std=(0.25,))
    with pytest.raises(FastDMError, match=r"mean was \[.*\] and is \[0\.5\]; std was"):
        run_search(job(other, networks=FOUR[:2], proxies=["random"]), CPU, save_path=tmp_path, resume=True)


def test_what_a_proxy_finds_is_worth_what_it_reaches_on_the_whole_set(digits: Dataset) -> None:
    what = job(digits, networks=FOUR[:3], proxies=["random", "condensed"])
    accuracies = {"random": (0.3, 0.2, 0.1), "condensed": (0.1, 0.2, 0.2), WHOLE_SET: (0.5, 0.9, 0.7)}
    records = [
        {"proxy": proxy, "network": name, "accuracies": [value], "seconds": 2.0}
        for proxy, values in accuracies.items()
        for name, value in zip(FOUR, values, strict=False)
    ]
    found = summary(what, records, condensing=10.0)
    assert (found["random"]["best"], found["random"]["accuracy"]) == (FOUR[0], 0.5)
    assert found["random"]["spearman"] == pytest.approx(-0.5)
    assert (found["condensed"]["best"], found["condensed"]["accuracy"]) == (FOUR[1], 0.9)
    assert (found["random"]["seconds"], found["condensed"]["seconds"]) == (6, 16)


def test_early_stopping_takes_as_many_updates_in_whole_epochs(digits: Dataset) -> None:
    what = job(digits, protocol=Protocol(FOUR, "none", 1, 299))
    assert what.protocol.steps(6) == 300
    assert what.protocol_on("early_stopped").steps(len(digits.train)) == 300  # 150 epochs of 2 batches
    short = job(digits, protocol=Protocol(FOUR, "none", 1, 1))
    assert short.protocol_on("early_stopped").epochs == 1


def test_a_partition_counts(digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Canvases on the random proxy too, and as many updates as on what they hold."""
    settings = Settings(ipc=100, batch_real=8, network="ConvNetD1", partition=2).resolve(digits, CPU)
    what = job(digits, settings=settings, proxies=["random"], networks=FOUR[:2], whole_set_epochs=1)
    assert what.protocol.steps(3 * 100 * 4) == 6 * 5  # epochs, batches
    assert what.protocol_on("early_stopped").steps(len(digits.train)) == 30
    trained = []

    def measured(images: Any, dataset: Dataset, protocol: Protocol, *_: Any, **__: Any) -> Evaluation:
        trained.append(images)
        return Evaluation({name: [0.5] for name in protocol.by_name()})

    monkeypatch.setattr("fastdm.applications.architecture_search.measure", measured)
    few = dataclasses.replace(what, settings=dataclasses.replace(settings, ipc=2))
    run_search(few, CPU, save_path=tmp_path)
    assert trained[0].partition == 2


def test_ranks_of_equal_values_are_their_mean() -> None:
    assert spearman([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    assert spearman([1, 1, 1], [1, 2, 3]) is None
    first, second = [1.0, 1.0, 2.0, 5.0], [3.0, 1.0, 1.0, 7.0]
    ranks = np.corrcoef([1.5, 1.5, 3, 4], [3, 1.5, 1.5, 4])
    assert spearman(first, second) == pytest.approx(ranks[0, 1])
    assert not math.isnan(ranks[0, 1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"networks": FOUR[:1]}, "at least two networks"),
        ({"networks": [FOUR[0], convnet_name(4, 32, "relu", "none", "avg")]}, "cannot take 8x8 images"),
        ({"proxies": ["DC"]}, "proxy is 'DC'; it must be one of 'condensed', 'random', 'early_stopped'"),
        ({"whole_set_epochs": 0}, "whole_set_epochs is 0"),
        ({"networks": [*FOUR, "ResNet18BN"], "protocol": Protocol(FOUR, "none", 1, 2, batch_train=5)}, "single image"),
    ],
)
def test_what_makes_no_sense(options: dict[str, Any], message: str, digits: Dataset) -> None:
    with pytest.raises(FastDMError, match=message):
        job(digits, **options)
