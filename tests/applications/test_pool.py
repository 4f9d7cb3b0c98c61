"""Training a pool: what is kept, that it repeats and resumes bit for bit, and its file."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fastdm
from fastdm.applications import pool as pool_room
from fastdm.condensation import loop
from fastdm.data.pool import Dataset
from fastdm.errors import FastDMError
from fastdm.networks.trained import NetworkPool, load_parameters
from fastdm.system.files import locked
from tests.oracles import random_dataset

OPTIONS: dict[str, Any] = {
    "networks": 2,
    "epochs": 3,
    "states": 4,
    "network": "ConvNetD1",
    "batch_train": 16,
    "device": "cpu",
    "precision": "fp32",
}


@pytest.fixture
def dataset() -> Dataset:
    made = random_dataset([20, 21, 22], (1, 8, 8))
    return dataclasses.replace(made, test=made.train)


def train(dataset: Dataset, **changes: Any) -> NetworkPool:
    return fastdm.train_pool(dataset, **{**OPTIONS, **changes})


def test_a_pool_repeats_bit_for_bit_and_follows_the_seed(dataset: Dataset) -> None:
    first = train(dataset)
    assert torch.equal(first.weights, train(dataset).weights)
    assert not torch.equal(first.weights, train(dataset, seed=1).weights)
    assert len(first.weights.flatten(0, 1).unique(dim=0)) == 2 * 4
    # A network's start does not depend on how many there are.
    assert torch.equal(first.weights[:1, 0], train(dataset, networks=1).weights[:, 0])


def test_the_last_state_has_the_accuracy_that_is_stated(dataset: Dataset) -> None:
    pool = train(dataset, epochs=20, lr_net=0.05, cutmix=False)
    network = pool.build()
    mean, std = dataset.mean[0], dataset.std[0]
    images = (dataset.train.images / 255 - mean) / std
    for row, stated in zip(pool.weights, pool.accuracies, strict=True):
        load_parameters(network, row[-1])
        right = (network(images).argmax(1) == dataset.train.labels).double().mean()
        assert right == pytest.approx(stated)
        load_parameters(network, row[0])
    assert min(pool.accuracies) > 0.4


def test_numbers_of_numpy_are_numbers(dataset: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "pool.safetensors"
    train(dataset, epochs=np.int64(1), lr_net=np.float32(0.5), seed=np.uint8(3), save_path=path)
    settings = NetworkPool.load(path).settings
    assert (settings["epochs"], settings["lr_net"], settings["seed"]) == (1, 0.5, 3)


def test_an_interrupted_training_resumes_bit_for_bit(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped between two snapshots, in the middle of an epoch, at all snapshots in turn.

    The second convolution's weights are channels-last, as their momentum must be.
    """
    options = {"network": "ConvNetD2"}
    whole = train(dataset, **options)
    path = tmp_path / "pool.safetensors"
    after = pool_room._Training.after
    for stop in (5, 9):

        def stopping(self: Any, done: int, momentum: Any, stop: int = stop) -> None:
            after(self, done, momentum)
            if done == stop:
                raise KeyboardInterrupt

        monkeypatch.setattr(pool_room._Training, "after", stopping)
        with pytest.raises(KeyboardInterrupt):
            train(dataset, **options, save_path=path, resume=True)
        assert not path.exists()
    monkeypatch.setattr(pool_room._Training, "after", after)
    with pytest.raises(FastDMError, match="was interrupted: resume it"):
        train(dataset, **options, save_path=path)
    with pytest.raises(FastDMError, match=r"lr_net was 0\.01 and is 0\.02"):
        train(dataset, **options, save_path=path, resume=True, lr_net=0.02)
    resumed = train(dataset, **options, save_path=path, resume=True)
    assert torch.equal(resumed.weights, whole.weights)
    assert resumed.accuracies == whole.accuracies
    assert [each.name for each in tmp_path.iterdir()] == [path.name]
    # A complete pool is what is resumed, without training.
    monkeypatch.setattr(pool_room, "_train", None)
    assert torch.equal(train(dataset, **options, save_path=path, resume=True).weights, whole.weights)
    with pytest.raises(FastDMError, match="already exists"):
        train(dataset, **options, save_path=path)


def test_another_normalisation_is_another_training(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "pool.safetensors"
    pool = train(dataset, save_path=path)
    other = dataclasses.replace(dataset, mean=(0.25,), std=(0.5,))
    with pytest.raises(FastDMError, match=r"mean was \[0\.5\] and is \[0\.25\]; std was"):
        train(other, save_path=path, resume=True)
    assert [*loop._other_data(dataset, pool)] == []
    assert [*loop._other_data(other, pool)] == [
        "the networks of the pool were trained on a data set random of other images, or normalised otherwise"
    ]
    settings = {name: value for name, value in pool.settings.items() if name not in ("mean", "std")}
    older = dataclasses.replace(pool, settings=settings)  # of an earlier version, which did not say
    older.save(path)
    assert torch.equal(train(dataset, save_path=path, resume=True).weights, pool.weights)
    assert [*loop._other_data(other, older)] == []


def test_an_interrupted_overwriting_is_what_is_resumed(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "pool.safetensors"
    train(dataset, save_path=path)
    whole = train(dataset, seed=1)
    after = pool_room._Training.after

    def stopping(self: Any, done: int, momentum: Any) -> None:
        after(self, done, momentum)
        if done == 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(pool_room._Training, "after", stopping)
        with pytest.raises(KeyboardInterrupt):
            train(dataset, seed=1, save_path=path, overwrite=True)
    assert NetworkPool.load(path).settings["seed"] == 0  # it is there until the other one is complete
    with pytest.raises(FastDMError, match="seed was 1 and is 2"):
        train(dataset, seed=2, save_path=path, resume=True)
    assert torch.equal(train(dataset, seed=1, save_path=path, resume=True).weights, whole.weights)
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_starting_over_leaves_nothing_of_more_networks(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "pool.safetensors"
    with monkeypatch.context() as patched:
        patched.setattr(pool_room.NetworkPool, "save", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train(dataset, save_path=path)
    (tmp_path / "pool-network-mine.safetensors").touch()
    train(dataset, networks=1, save_path=path, overwrite=True)
    assert {each.name for each in tmp_path.iterdir()} == {path.name, "pool-network-mine.safetensors"}


def test_a_pool_survives_its_file_and_damage_is_noticed(dataset: Dataset, tmp_path: Path) -> None:
    pool = train(dataset)
    path = tmp_path / "pool.safetensors"
    pool.save(path)
    loaded = NetworkPool.load(path)
    assert torch.equal(loaded.weights, pool.weights)
    assert loaded.summary() == pool.summary()
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(FastDMError, match="checksum does not match"):
        NetworkPool.load(path)
    with pytest.raises(FastDMError, match="is not a pool of trained networks"):
        NetworkPool.load(tmp_path / "absent.safetensors")


def test_a_pool_is_not_lost_to_flags_that_contradict_each_other(dataset: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "pool.safetensors"
    train(dataset, networks=1, epochs=1, states=2, save_path=path)
    before = path.read_bytes()
    with pytest.raises(FastDMError, match="resume continues a training, and overwrite starts over"):
        train(dataset, networks=1, epochs=1, states=2, seed=1, save_path=path, resume=True, overwrite=True)
    assert path.read_bytes() == before


def test_one_process_at_a_time_trains_for_a_file(dataset: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "pool.safetensors"
    with (
        locked(tmp_path / ".pool.safetensors.lock", "it"),
        pytest.raises(FastDMError, match=r"pool\.safetensors is in use by another process"),
    ):
        train(dataset, save_path=path)
    train(dataset, networks=1, epochs=1, states=2, save_path=path)
    assert [each.name for each in tmp_path.iterdir()] == ["pool.safetensors"]


def test_a_file_of_weights_that_are_not_finite_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    pool = train(dataset, networks=1, epochs=1, states=2)
    spoilt = dataclasses.replace(pool, weights=pool.weights.where(pool.weights != pool.weights.max(), torch.nan))
    spoilt.save(tmp_path / "pool.safetensors")
    with pytest.raises(FastDMError, match="it has weights that are not finite numbers"):
        NetworkPool.load(tmp_path / "pool.safetensors")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"networks": 0}, "networks is 0"),
        ({"epochs": 0}, "epochs is 0"),
        ({"states": 1}, "states is 1"),
        ({"states": 14}, "states is 14, but trainings of 12 updates have 13; use at most as many"),
        ({"network": "ResNet18BN", "batch_train": 31}, "ResNet18BN cannot be trained on a single image"),
        ({"network": "ConvNt"}, "unknown network 'ConvNt'"),
        ({"save_path": "pool.pt"}, "must end in .safetensors"),
        ({"cutmix": "no"}, "cutmix is 'no'; it must be one of True, False"),
        ({"lr_net": 1e9}, r"network [01] has weights that are not finite after \d+ updates: a smaller lr_net"),
    ],
)
def test_bad_settings_are_refused(changes: dict[str, Any], message: str, dataset: Dataset) -> None:
    with pytest.raises(FastDMError, match=message):
        train(dataset, **changes)


def test_networks_trained_together_are_those_that_are_trained_alone(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU; a part that is there already is left to trainings one by one, which resume it."""
    alone = train(dataset)
    path = tmp_path / "pool.safetensors"
    counted: list[int] = []

    def together(trainings: Any, jobs: Any, *_: Any) -> Any:
        return trainings.together(jobs, lambda: counted.append(1))

    with monkeypatch.context() as patched:
        patched.setattr(pool_room, "train_all", together)
        pool = train(dataset, save_path=path)
        assert len(counted) == 2 * 3 * 4  # networks, epochs and batches
        # Each update is off by the rounding of its learning rate, a float32 there.
        assert (pool.weights - alone.weights).abs().max() <= 1e-5 * alone.weights.abs().max()
        assert pool.accuracies == pytest.approx(alone.accuracies, abs=1 / len(dataset.train))

        path.unlink()
        patched.setattr(pool_room.NetworkPool, "save", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train(dataset, save_path=path)
        with pytest.raises(RuntimeError, match="what was interrupted is resumed"):
            train(dataset, save_path=path, resume=True)
    resumed = train(dataset, save_path=path, resume=True)
    assert torch.equal(resumed.weights, pool.weights)
