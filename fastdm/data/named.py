"""Data sets known by name: torchvision's, Tiny-ImageNet, scikit-learn's digits."""

import contextlib
import importlib.util
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fastdm.data.arrays import Split, as_images, as_labels, make_dataset, make_pool
from fastdm.data.pool import Dataset
from fastdm.errors import FastDMError
from fastdm.system.memory import is_exhausted

# The files that torchvision reads, or unpacks: what to fetch by hand where nothing can be downloaded.
_MNIST_FILES = ", ".join(
    f"{part}-{what}-ubyte.gz" for part in ("train", "t10k") for what in ("images-idx3", "labels-idx1")
)
_TORCHVISION_FILES = {
    "MNIST": f"MNIST/raw/{{{_MNIST_FILES}}}",
    "FashionMNIST": f"FashionMNIST/raw/{{{_MNIST_FILES}}}",
    "SVHN": "train_32x32.mat and test_32x32.mat",
    "CIFAR10": "cifar-10-python.tar.gz or the folder cifar-10-batches-py/ in it",
    "CIFAR100": "cifar-100-python.tar.gz or the folder cifar-100-python/ in it",
}
NAMES = (*_TORCHVISION_FILES, "TinyImageNet", "digits")
_DIGITS_TEST = 36  # test images of each digit: a fifth


def find_tiny_imagenet(data_path: Path) -> Path:
    candidates = [data_path / "tiny-imagenet-200", data_path / "tinyimagenet.pt"]
    for path in candidates:
        if path.exists():
            return path
    raise FastDMError(f"TinyImageNet is not there: put the folder {candidates[0]} or the file {candidates[1]} in place")


def open_torchvision(source: str, data_path: Path, name: str | None) -> Dataset:
    if source == "SVHN" and importlib.util.find_spec("scipy") is None:
        raise FastDMError("SVHN comes in MATLAB files, which scipy reads: pip install scipy")
    if data_path.exists() and not data_path.is_dir():
        raise FastDMError(f"data_path {data_path} is not a folder; it is where {source} is, or is downloaded to")
    from torchvision import datasets

    try:
        train, test = _load(getattr(datasets, source), source, data_path)
    except Exception as error:  # torchvision passes on those of urllib, tarfile, pickle, scipy, …
        if is_exhausted(error):
            raise
        if isinstance(error, _Damaged):
            raise FastDMError(
                f"the files of {source} in {data_path} are damaged ({error}); remove them, and put "
                f"{_TORCHVISION_FILES[source]} into {data_path}, unless they can be downloaded"
            ) from error
        raise FastDMError(
            f"{source} is not in {data_path} as its makers distribute it, and downloading it failed "
            f"({_reason(error)}); put {_TORCHVISION_FILES[source]} into {data_path}"
        ) from error

    def split(part: Any) -> Split:
        return as_images(source, part.data), as_labels(source, part.labels if source == "SVHN" else part.targets)

    class_names = [str(digit) for digit in range(10)] if source == "SVHN" else train.classes
    return make_dataset(name or source, split(train), split(test), class_names)


class _Damaged(Exception):
    """What is unpacked cannot be read. torchvision neither unpacks nor downloads anything in its place."""


def _reason(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _load(kind: Any, source: str, data_path: Path) -> list[Any]:
    """Both parts: as they are, unpacked from what is there, or downloaded."""
    parts = [{"split": "train"}, {"split": "test"}] if source == "SVHN" else [{"train": True}, {"train": False}]

    def load(root: Path, download: bool) -> list[Any]:
        return [kind(root, download=download, **part) for part in parts]

    try:
        return load(data_path, False)
    except Exception as error:  # torchvision passes on those of pickle, scipy, …
        if not (isinstance(error, RuntimeError) and "download=True" in str(error)):  # not found, or not unpacked
            raise _Damaged(_reason(error)) from error
    if not data_path.is_dir():
        return _downloaded(load, data_path)
    if os.access(data_path, os.W_OK):
        made = [folder for folder in (data_path / source / "raw", data_path / source) if not folder.exists()]
        try:
            return load(data_path, True)
        except Exception:
            for folder in made:
                with contextlib.suppress(OSError):  # not empty, or never made
                    folder.rmdir()
            raise
    # Not writable: the archives are unpacked elsewhere, for the time of reading them.
    archives = [Path(source, "raw", name) for name, _ in getattr(kind, "resources", ())]
    archives += [Path(kind.filename)] if hasattr(kind, "filename") else []
    if not archives or not all((data_path / archive).is_file() for archive in archives):
        raise PermissionError(f"{data_path} cannot be written")
    with tempfile.TemporaryDirectory(prefix="fastdm-") as elsewhere:
        for archive in archives:
            link = Path(elsewhere, archive)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to((data_path / archive).absolute())
        return load(Path(elsewhere), True)


def _downloaded(load: Callable[[Path, bool], list[Any]], data_path: Path) -> list[Any]:
    """Download to a folder that is not there: it is made once there is something to put into it."""
    existing = next(parent for parent in data_path.absolute().parents if parent.is_dir())
    with tempfile.TemporaryDirectory(prefix=".fastdm-", dir=existing) as downloads:
        loaded = load(Path(downloads), True)
        data_path.mkdir(parents=True, exist_ok=True)
        for path in Path(downloads).iterdir():
            path.rename(data_path / path.name)
    return loaded


def open_digits(name: str) -> Dataset:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise FastDMError("the data set digits comes with scikit-learn: pip install scikit-learn") from error

    bunch = load_digits()
    images = torch.from_numpy(bunch.images * (255 / 16)).round().to(torch.uint8)[:, None]
    pool = make_pool(name, "train", images, torch.from_numpy(bunch.target).long(), 10)
    is_test = torch.zeros(len(pool), dtype=torch.bool)
    is_test[pool.draw(0, 0, _DIGITS_TEST).flatten()] = True
    train, test = ((pool.images[part], pool.labels[part]) for part in (~is_test, is_test))
    return make_dataset(name, train, test, [str(digit) for digit in range(10)])
