"""What the package hands out goes through pickle, copies and the spawned workers of a `DataLoader`."""

import copy
import dataclasses
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import fastdm
from fastdm.augmentation import Strategy
from fastdm.data.pool import Dataset, Pool
from fastdm.evaluation.protocol import Protocol
from fastdm.networks.architectures import build_network


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    images = np.random.default_rng(0).integers(0, 256, (40, 3, 8, 8), dtype=np.uint8)
    return fastdm.open_dataset((images, np.arange(40) % 4))


@pytest.fixture(scope="module")
def packed(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fastdm.pack(dataset, tmp_path_factory.mktemp("packed") / "a.fastdm").path


COPIES = {"pickle": lambda each: pickle.loads(pickle.dumps(each)), "copy": copy.copy, "deepcopy": copy.deepcopy}


def outline(value: object) -> object:
    """What two copies have in common: tensors as numbers, objects as their attributes."""
    if isinstance(value, torch.Tensor):
        return value.dtype, value.tolist()
    if isinstance(value, dict):
        return {key: outline(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [outline(each) for each in value]
    return outline(vars(value)) if hasattr(value, "__dict__") and not isinstance(value, type) else value


def test_what_is_handed_out_can_be_copied(dataset: Dataset) -> None:
    synthetic = fastdm.random_selection(dataset, 1)
    network = build_network("ConvNetD1", channels=3, num_classes=4, image_size=(8, 8))
    tensors = synthetic.as_dataset()
    learning = dataclasses.replace(synthetic, images=synthetic.images.clone().requires_grad_() * 1)
    pool = fastdm.train_pool(dataset, networks=1, epochs=1, states=2, network="ConvNetD1", device="cpu")
    things = [
        dataset,
        dataset.train.classes(1, 3),
        synthetic,
        fastdm.Settings(iterations=3),
        fastdm.ParamDiffAug(),
        Strategy.parse("color_crop"),
        Protocol(["ConvNetD1"], "none", 1, 1),
        pool,
        fastdm.compat.RealImages(dataset),
    ]
    for copied in COPIES.values():
        for thing in things:
            assert outline(copied(thing)) == outline(thing), type(thing)
        assert outline(copied(learning.as_dataset()).tensors) == outline(tensors.tensors)
        assert outline(copied(network).state_dict()) == outline(network.state_dict())
        assert outline(copied(tensors).tensors) == outline(tensors.tensors)
        assert str(copied(fastdm.FastDMError("a sentence"))) == "a sentence"


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("io", ["auto", "mmap", "direct", "ram"])
def test_images_in_a_file_are_copied_as_its_name(packed: Path, io: Any, way: str) -> None:
    opened = fastdm.open_dataset(packed, io=io)
    for pool in (opened.train, opened.train.classes(1, 3)):
        copied = COPIES[way](pool)
        assert type(copied.backing) is type(pool.backing)
        assert torch.equal(copied.images, pool.images)
        assert torch.equal(copied.draw(1, 2, 3), pool.draw(1, 2, 3))
        assert torch.equal(copied.gather(copied.draw(1, 2, 3)), pool.gather(pool.draw(1, 2, 3)))
    if io != "ram":
        assert len(pickle.dumps(opened)) < opened.train.images.numel()
    assert COPIES[way](opened).class_names == opened.class_names


def test_a_pickle_of_a_packed_file_opens_it_anywhere(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(packed.parent)
    pickled = pickle.dumps(fastdm.open_dataset(packed.name))
    monkeypatch.chdir("/")
    assert len(pickle.loads(pickled).train) == 40


def test_a_pickle_of_a_file_that_has_changed_is_refused(dataset: Dataset, packed: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.fastdm"
    path.write_bytes(packed.read_bytes())
    opened = fastdm.open_dataset(path)
    pickled, kept = pickle.dumps(opened), copy.deepcopy(opened)
    images = dataset.train.images.flip(0)
    fastdm.pack((images, dataset.train.labels), path, overwrite=True)
    with pytest.raises(fastdm.FastDMError, match="is not the file that was pickled"):
        pickle.loads(pickled)
    path.unlink()
    with pytest.raises(fastdm.FastDMError, match=r"a\.fastdm"):
        pickle.loads(pickled)
    index = torch.arange(40)
    assert torch.equal(copy.copy(kept).train.gather(index), dataset.train.gather(index))


class Items(torch.utils.data.Dataset[Any]):
    """The items of a pool, as somebody's own data set."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool

    def __len__(self) -> int:
        return len(self.pool)

    def __getitem__(self, index: int) -> Any:
        return self.pool.gather(torch.tensor([index]))[0], int(self.pool.labels[index])


def test_spawned_workers_read_a_mapped_pool_and_a_set(dataset: Dataset, packed: Path) -> None:
    pool = fastdm.open_dataset(packed, io="mmap").train
    synthetic = fastdm.random_selection(dataset, 1).as_dataset()
    both: Any = torch.utils.data.ConcatDataset([Items(pool), synthetic])
    loader = DataLoader(both, batch_size=1, num_workers=1, multiprocessing_context="spawn")
    images = [image[0] for image, _ in loader]
    assert torch.equal(torch.stack(images[:40]), pool.images)
    assert torch.equal(torch.stack(images[40:]), synthetic.tensors[0])
