"""Data sets by name: where they are looked for, unpacked and downloaded to."""

import gzip
import hashlib
import os
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torchvision import datasets
from torchvision.datasets import utils

from fastdm.data import named, open_dataset
from fastdm.errors import FastDMError

RNG = np.random.default_rng(1)


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes() + array.tobytes()


def fashion_mnist(root: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """The four .gz files as they are downloaded, smaller; torchvision is given their checksums. Returns the images."""
    images, labels = RNG.integers(0, 256, (20, 28, 28), dtype=np.uint8), np.arange(20, dtype=np.uint8) % 10
    raw = root / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    resources = []
    for part in ("train", "t10k"):
        for what, array in (("images-idx3", images), ("labels-idx1", labels)):
            path = raw / f"{part}-{what}-ubyte.gz"
            path.write_bytes(gzip.compress(idx(array)))
            resources.append((path.name, hashlib.md5(path.read_bytes()).hexdigest()))
    monkeypatch.setattr(datasets.FashionMNIST, "resources", resources)
    return images


def cifar10(root: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """cifar-10-python.tar.gz, smaller. Returns the training images."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    images = RNG.integers(0, 256, (20, 3, 32, 32), dtype=np.uint8)
    lists: dict[str, list[tuple[str, str]]] = {"train_list": [], "test_list": []}
    for name, key in (("data_batch_1", "train_list"), ("test_batch", "test_list")):
        content = {"data": images.reshape(20, -1), "labels": [number % 10 for number in range(20)]}
        (folder / name).write_bytes(pickle.dumps(content))
        lists[key].append((name, hashlib.md5((folder / name).read_bytes()).hexdigest()))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    meta = {"filename": "batches.meta", "key": "label_names"}
    meta["md5"] = hashlib.md5((folder / "batches.meta").read_bytes()).hexdigest()
    with tarfile.open(root / "cifar-10-python.tar.gz", "w:gz") as archive:
        archive.add(folder, "cifar-10-batches-py")
    for path in (*folder.iterdir(),):
        path.unlink()
    folder.rmdir()
    md5 = hashlib.md5((root / "cifar-10-python.tar.gz").read_bytes()).hexdigest()
    for name, value in {**lists, "meta": meta, "tgz_md5": md5}.items():
        monkeypatch.setattr(datasets.CIFAR10, name, value)
    return images


@pytest.fixture
def downloads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is asked of the network, which is not there."""
    asked: list[str] = []

    def fetch(url: str, *_: Any, **__: Any) -> None:
        asked.append(url)
        raise OSError("no network")

    monkeypatch.setattr(utils, "_urlretrieve", fetch)
    monkeypatch.setattr(utils, "_get_redirect_url", lambda url, **_: url)
    return asked


@pytest.mark.parametrize("make", [fashion_mnist, cifar10])
def test_archives_in_a_folder_that_cannot_be_written_are_read(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, downloads: list[str]
) -> None:
    images = make(tmp_path / "ro", monkeypatch)
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # the superuser may write everywhere
    opened = open_dataset("FashionMNIST" if make is fashion_mnist else "CIFAR10", data_path=tmp_path / "ro")
    expected = images[:, None] if make is fashion_mnist else images
    order = np.arange(20).reshape(2, 10).T.ravel()  # sorted by class
    assert np.array_equal(opened.train.images.numpy(), expected[order])
    assert sorted(tmp_path.rglob("*")) == before
    assert downloads == []


@pytest.mark.parametrize("name", ["FashionMNIST", "CIFAR10", "SVHN"])
def test_a_folder_that_cannot_be_written_is_named_as_that(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, downloads: list[str]
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(FastDMError, match=f"{name} is not in .*{tmp_path.name} cannot be written"):
        open_dataset(name, data_path=tmp_path)
    assert downloads == []


@pytest.mark.parametrize("name", ["MNIST", "CIFAR10", "SVHN"])
def test_nothing_is_left_of_a_download_that_fails(name: str, tmp_path: Path, downloads: list[str]) -> None:
    for data_path in (tmp_path / "new" / "data", tmp_path):
        with pytest.raises(FastDMError, match=f"{name} is not in {data_path} .* downloading it failed"):
            open_dataset(name, data_path=data_path)
        assert list(tmp_path.iterdir()) == []
    assert downloads


def test_a_folder_that_is_not_there_is_made_once_a_download_has_worked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = fashion_mnist(tmp_path / "server", monkeypatch)
    target = tmp_path / "new" / "data"

    def fetch(url: str, filename: str, *_: Any) -> None:
        assert not target.exists()
        Path(filename).write_bytes((tmp_path / "server/FashionMNIST/raw" / url.rpartition("/")[2]).read_bytes())

    monkeypatch.setattr(utils, "_urlretrieve", fetch)
    monkeypatch.setattr(utils, "_get_redirect_url", lambda url, **_: url)
    opened = open_dataset("FashionMNIST", data_path=target)
    assert np.array_equal(opened.train.images[0, 0].numpy(), images[0])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "server"]
    monkeypatch.undo()
    fashion = named.open_torchvision("FashionMNIST", target, None)  # what was unpacked is there
    assert len(fashion.train) == 20


@pytest.mark.parametrize("length", [0, 1000])
def test_what_was_half_unpacked_is_said_to_be_damaged(
    length: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, downloads: list[str]
) -> None:
    """It is not unpacked again, whatever lies next to it."""
    fashion_mnist(tmp_path, monkeypatch)
    open_dataset("FashionMNIST", data_path=tmp_path)
    os.truncate(tmp_path / "FashionMNIST/raw/train-images-idx3-ubyte", length)
    with pytest.raises(FastDMError, match=r"files of FashionMNIST in .* are damaged \(.+\); remove them, and put"):
        open_dataset("FashionMNIST", data_path=tmp_path)
    assert downloads == []


def test_too_little_memory_is_not_taken_for_a_data_set_that_is_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(datasets, "CIFAR10", exhausted)
    with pytest.raises(FastDMError, match="the memory that this process may use is not enough"):
        open_dataset("CIFAR10", data_path=tmp_path)


def test_a_data_path_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FastDMError, match=r"data_path .*file is not a folder"):
        open_dataset("CIFAR10", data_path=tmp_path / "file")
