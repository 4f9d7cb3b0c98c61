"""The condensed set: its images, what is needed to use them, and its files."""

import json
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional
from torch.utils.data import TensorDataset

from fastdm import __version__
from fastdm.data.pool import Dataset
from fastdm.data.sources import customary_normalisation
from fastdm.errors import FastDMError
from fastdm.files import atomic_write, is_zip
from fastdm.networks import network_names

_FORMAT = "fastdm-synthetic-1"
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_GAP = 2  # black pixels between the pictures of a grid

# The accuracies of the public code are numpy.float64: what a pickle of such a number names, by NumPy 2 and by NumPy 1.
_SCALAR = np.float64().__reduce__()[0]
_NUMPY_NUMBER: list[Any] = [
    (_SCALAR, "numpy._core.multiarray.scalar"),
    (_SCALAR, "numpy.core.multiarray.scalar"),
    np.dtype,
    type(np.dtype(np.float64)),
]


@dataclass(frozen=True, eq=False)
class SyntheticSet:
    """A small set of images in place of a data set.

    images: float32 [classes * ipc, C, H, W], normalised: pixel = (x − mean) / std with x in [0, 1] (where it was never
    clipped: also beyond). Class-sorted: image j of class c is row ``c * ipc + j``.
    class_names, mean, std, dataset: as in the ``Dataset`` it stands for (``dataset`` is its name); settings: what the
    set was made with; version: the fastdm that made it.
    """

    images: Tensor = field(repr=False)
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    dataset: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    version: str = __version__

    def __post_init__(self) -> None:
        shape = list(self.images.shape)
        if self.images.dtype != torch.float32 or len(shape) != 4:
            raise FastDMError(f"synthetic images must be float32 [N, C, H, W], not {self.images.dtype} {shape}")
        if not self.class_names or shape[0] == 0 or shape[0] % len(self.class_names):
            raise FastDMError(f"{shape[0]} synthetic images are not equally many of each of {self.num_classes} classes")
        values = (*self.mean, *self.std)
        if not len(self.mean) == len(self.std) == shape[1] or not all(
            isinstance(value, int | float) for value in values
        ):
            raise FastDMError(f"mean and std must have {shape[1]} values, one per channel")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def ipc(self) -> int:
        """Images per class."""
        return len(self.images) // self.num_classes

    @property
    def labels(self) -> Tensor:
        """int64 [classes * ipc]."""
        return torch.arange(self.num_classes).repeat_interleave(self.ipc)

    def as_dataset(self) -> TensorDataset:
        """(normalised image, label) pairs for a torch ``DataLoader``."""
        return TensorDataset(self.images, self.labels.to(self.images.device))

    def crc32(self) -> str:
        """Checksum of the images' bytes."""
        return _crc32(self.images.detach().cpu().contiguous())

    def facts(self) -> dict[str, Any]:
        """What is in the set, without the images."""
        return {
            "dataset": self.dataset,
            "classes": self.num_classes,
            "ipc": self.ipc,
            "image_shape": tuple(self.images.shape[1:]),
            "mean": self.mean,
            "std": self.std,
            "class_names": self.class_names,
            "settings": dict(self.settings),
            "fastdm": self.version,
        }

    def save(self, path: str | Path) -> None:
        """Write the set to a file, atomically; its suffix says in which format.

        ``.safetensors`` keeps everything. ``.pt`` is the public code's format, ``{"data": [[images, labels]],
        "accs_all_exps": {}}``, without class names, normalisation and settings.
        """
        suffix = Path(path).suffix
        if suffix == ".pt":
            save_public([self], path)
        elif suffix == ".safetensors":
            self._save_safetensors(path)
        else:
            raise FastDMError(f"{path} must end in .safetensors, or in .pt for the public code's format")

    def _save_safetensors(self, path: str | Path) -> None:
        images = self.images.detach().cpu().contiguous()
        about = {
            "class_names": self.class_names,
            "mean": self.mean,
            "std": self.std,
            "dataset": self.dataset,
            "settings": dict(self.settings),
            "version": self.version,
        }
        metadata = {"format": _FORMAT, "about": json.dumps(about), "crc32": self.crc32()}
        with _writing(path) as temporary:
            save_file({"images": images}, temporary, metadata)

    @classmethod
    def load(cls, path: str | Path, *, experiment: int = 0, dataset: Dataset | None = None) -> "SyntheticSet":
        """Set number ``experiment``, counted from 0, of those that ``load_all`` reads."""
        sets = cls.load_all(path, dataset=dataset)
        if not 0 <= experiment < len(sets):
            raise FastDMError(f"{path} holds {len(sets)} sets, counted from 0; there is no set {experiment}")
        return sets[experiment]

    @classmethod
    def load_all(cls, path: str | Path, *, dataset: Dataset | None = None) -> "list[SyntheticSet]":
        """Read the set that ``save`` wrote, or those of a ``.pt`` file in the public code's format, one per experiment.

        A ``.pt`` file holds neither class names nor normalisation: these are taken from ``dataset``; without it, the
        normalisation is the customary one of the data set that the file's name (``res_DM_CIFAR10_ConvNet_10ipc.pt``)
        speaks of. Raises FastDMError, naming the file, for whatever cannot be used, and for sets that are not like the
        ``dataset``.
        """
        path = Path(path)
        if is_zip(path):
            sets = _load_public(path, dataset)
        else:
            sets = [_load_safetensors(path)]
            if dataset is not None:
                check_stands_for(str(path), sets[0].num_classes, sets[0].images.shape[1:], dataset)
        if not all(loaded.images.isfinite().all() for loaded in sets):
            raise FastDMError(f"{path} holds pixels that are not finite numbers")
        return sets

    def save_grid(self, path: str | Path, *, zoom: int = 1) -> None:
        """Write a PNG of all images, one class per row: de-normalised, clipped to [0, 1], each pixel `zoom` wide."""
        if zoom < 1:
            raise FastDMError(f"zoom is {zoom}; it must be at least 1")
        images = self.images.detach().cpu()
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.mean, self.std))
        pictures = ((images * std + mean).clamp(0, 1) * 255 + 0.5).to(torch.uint8)
        spaced = functional.pad(pictures, (0, _GAP, 0, _GAP))
        rows = spaced.reshape(self.num_classes, self.ipc, *spaced.shape[1:])
        grid = functional.pad(rows.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1), (0, 0, _GAP, 0, _GAP, 0))
        with _writing(path) as temporary:
            pixels = grid.repeat_interleave(zoom, 0).repeat_interleave(zoom, 1).squeeze(2).numpy()
            Image.fromarray(pixels).save(temporary, format="PNG")


def save_public(
    sets: Sequence[SyntheticSet], path: str | Path, accuracies: Mapping[str, Sequence[float]] | None = None
) -> None:
    """Write one set per experiment as the public code's ``res_DM_….pt``.

    ``{"data": [[images, labels], …], "accs_all_exps": {network: [accuracies]}}``, CPU tensors, accuracies in [0, 1].
    """
    data = [[synthetic.images.detach().cpu().clone(), synthetic.labels] for synthetic in sets]
    found = {network: list(values) for network, values in (accuracies or {}).items()}
    with _writing(path) as temporary:
        torch.save({"data": data, "accs_all_exps": found}, temporary)


def read_public(path: str | Path) -> tuple[list[tuple[Tensor, Tensor]], dict[str, list[float]]]:
    """(images, labels) of every experiment, and the accuracies of every network, of a ``res_DM_….pt``."""
    try:
        with torch.serialization.safe_globals(_NUMPY_NUMBER):
            data = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many kinds, of many lines, for what is no file of its own
        raise FastDMError(f"{path} is no .pt file, or damaged, or holds more than tensors and numbers") from error
    try:
        sets = [(images, labels) for images, labels in data["data"]]
        accuracies = {network: [*map(float, values)] for network, values in data.get("accs_all_exps", {}).items()}
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise FastDMError(f'{path} holds no {{"data": [[images, labels], …]}} of the public code') from error
    if not sets:
        raise FastDMError(f"{path} holds no experiment")
    for images, labels in sets:
        _check_labelled(path, images, labels)
    return sets, accuracies


def recorded_dataset(path: str | Path) -> str:
    """The name of the data set that the sets in a file stand for: from the file, of a ``.pt`` from its name."""
    path = Path(path)
    name = _told_by_name(path)[0] if is_zip(path) else _load_safetensors(path).dataset
    if not name:
        raise FastDMError(f"{path} does not say for which data set it stands; name the data set")
    return name


def check_stands_for(what: str, num_classes: int, image_shape: Sequence[int], dataset: Dataset) -> None:
    """Raise FastDMError unless the data set has as many classes as ``what``, and images of its shape (C, H, W)."""
    ours, theirs = (
        f"{classes} classes of {'x'.join(map(str, shape))} images"
        for classes, shape in ((num_classes, image_shape), (dataset.num_classes, dataset.image_shape))
    )
    if ours != theirs:
        raise FastDMError(f"{what} has {ours}, but data set {dataset.name} has {theirs}")


@contextmanager
def _writing(path: str | Path) -> Iterator[Path]:
    """``atomic_write`` into a folder that is made if absent; FastDMError where nothing can be written."""
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            yield temporary
    except (OSError, SafetensorError) as error:
        raise FastDMError(f"{path} cannot be written: {error}") from error


def _load_safetensors(path: Path) -> SyntheticSet:
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            images = file.get_tensor("images") if metadata.get("format") == _FORMAT else None
        if images is None:
            raise FastDMError(f"it is not of this version of fastdm ({_FORMAT})")
        if metadata.get("crc32") != _crc32(images):
            raise FastDMError("its checksum does not match")
        about = json.loads(metadata.get("about", "{}"))
        known = {entry.name for entry in fields(SyntheticSet)} - {"images"}
        if about.keys() != known:
            raise FastDMError(
                f"it must tell {', '.join(sorted(known))}, but tells {', '.join(sorted(about)) or 'nothing'}"
            )
        if not (isinstance(about["dataset"], str) and isinstance(about["settings"], dict)):
            raise FastDMError("its dataset must be a name, and its settings values by name")
        for name in ("class_names", "mean", "std"):
            about[name] = tuple(about[name])
        return SyntheticSet(images=images, **about)
    except (SafetensorError, OSError, ValueError, TypeError, AttributeError) as error:
        raise FastDMError(f"{path} is no condensed set, or damaged: {error}") from error


def _load_public(path: Path, dataset: Dataset | None) -> list[SyntheticSet]:
    name, network = _told_by_name(path)
    settings = {"network": network} if network else {}
    loaded = []
    for images, labels in read_public(path)[0]:
        counts = torch.bincount(labels)
        if (counts != counts[0]).any():
            raise FastDMError(f"{path} holds classes of {int(counts.min())} and of {int(counts.max())} images")
        if dataset is None:
            normalisation = customary_normalisation(name, images.shape[1])
            class_names = tuple(map(str, range(len(counts))))
        else:
            check_stands_for(str(path), len(counts), images.shape[1:], dataset)
            name, normalisation, class_names = dataset.name, (dataset.mean, dataset.std), dataset.class_names
        if normalisation is None:
            raise FastDMError(
                f"{path} does not say how its pixels are normalised; load it with the dataset it stands for"
            )
        pixels = images[labels.argsort(stable=True)].detach().float()
        loaded.append(SyntheticSet(pixels, class_names, *normalisation, name, settings))
    return loaded


def _told_by_name(path: Path) -> tuple[str, str]:
    """Data set and network in the name of a ``res_DM_CIFAR10_ResNet18_AP_10ipc.pt``; "" where it has another name."""
    networks = "|".join(map(re.escape, network_names()))
    told = re.match(rf"res_[^_]+_(.+?)_({networks}|[^_]+)_\d+ipc", path.name)
    return (told[1], told[2]) if told else ("", "")


def _crc32(images: Tensor) -> str:
    return str(zlib.crc32(images.numpy().data))


def _check_labelled(path: str | Path, images: object, labels: object) -> None:
    """Raise FastDMError, naming the file, for what are no images with one label each."""
    if not (isinstance(images, Tensor) and images.ndim == 4 and images.is_floating_point()):
        raise FastDMError(f"{path} holds images that are no floating-point tensor [N, C, H, W] but {_kind(images)}")
    if not (isinstance(labels, Tensor) and labels.ndim == 1 and labels.dtype in _INTEGERS):
        raise FastDMError(f"{path} holds labels that are no integer tensor [N] but {_kind(labels)}")
    if len(images) != len(labels) or len(images) == 0:
        raise FastDMError(f"{path} holds {len(images)} images and {len(labels)} labels; there must be one for each")
    if labels.min() < 0:
        raise FastDMError(f"{path} holds the label {int(labels.min())}; labels count from 0")


def _kind(value: object) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
