"""The condensed set: its images, what is needed to use them, and its files."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional
from torch.utils.data import TensorDataset

from fastdm.data.normalisation import standard_normalisation
from fastdm.data.pool import Dataset
from fastdm.errors import FastDMError, whole_number
from fastdm.synthetic.partition import check_partition, expand
from fastdm.synthetic.picture import picture
from fastdm.synthetic.public_file import parse_file_name, read_public, write_public
from fastdm.system.files import crc32, is_zip, writing
from fastdm.version import __version__

_FORMAT = "fastdm-synthetic-1"
_GAP = 2  # black pixels between the pictures of a grid


@dataclass(frozen=True, eq=False)
class SyntheticSet:
    """A small set of images in place of a data set.

    images: float32 [classes * ipc, C, H, W], normalised: pixel = (x − mean) / std with x in [0, 1] (where it was never
    clipped: also beyond). Class-sorted: image j of class c is row `c * ipc + j`.
    partition: f; above 1 the images are canvases, each of f × f training images, which `expand` decodes.
    soft_labels: float16 [N * f², classes], probabilities for every decoded image, or None.
    class_names, mean, std, dataset: as in the `Dataset` that was condensed (`dataset` is its name); settings: what the
    set was made with; version: the fastdm that made it.

    >>> import fastdm
    >>> synthetic = fastdm.random_selection("digits", ipc=2)
    >>> len(synthetic), synthetic.ipc, synthetic.labels[:4].tolist()
    (20, 2, [0, 0, 1, 1])
    """

    images: Tensor = field(repr=False)
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    dataset: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    version: str = __version__
    partition: int = 1
    soft_labels: Tensor | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        shape = list(self.images.shape)
        if self.images.dtype != torch.float32 or len(shape) != 4:
            raise FastDMError(f"synthetic images must be float32 [N, C, H, W], not {self.images.dtype} {shape}")
        if not self.class_names or shape[0] == 0 or shape[0] % len(self.class_names):
            raise FastDMError(f"{shape[0]} synthetic images cannot be divided evenly among {self.num_classes} classes")
        values = (*self.mean, *self.std)
        if not len(self.mean) == len(self.std) == shape[1] or not all(
            isinstance(value, int | float) for value in values
        ):
            raise FastDMError(f"mean and std must have {shape[1]} values, one per channel")
        object.__setattr__(self, "partition", whole_number("partition", self.partition, 1))
        check_partition(self.partition, (shape[2], shape[3]))
        soft, wanted = self.soft_labels, [shape[0] * self.partition**2, self.num_classes]
        if soft is not None and (soft.dtype != torch.float16 or list(soft.shape) != wanted):
            raise FastDMError(f"soft labels must be float16 {wanted}, not {soft.dtype} {list(soft.shape)}")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def ipc(self) -> int:
        """Images per class: canvases, if there is a partition."""
        return len(self.images) // self.num_classes

    @property
    def labels(self) -> Tensor:
        """int64 [classes * ipc]."""
        return torch.arange(self.num_classes).repeat_interleave(self.ipc)

    def expand(self) -> "SyntheticSet":
        """The set of the training images that the canvases hold, decoded: ipc · partition² per class.

        The set itself where there is no partition.
        """
        if self.partition == 1:
            return self
        return replace(self, images=expand(self.images.detach(), self.partition), partition=1)

    def as_dataset(self) -> TensorDataset:
        """(normalised image, label) pairs for a torch `DataLoader`, decoded if there is a partition."""
        decoded = self.expand()
        return TensorDataset(decoded.images, decoded.labels.to(self.images.device))

    def crc32(self) -> str:
        """Checksum of the images' bytes."""
        return str(crc32(self.images.detach().cpu().contiguous()))

    def summary(self) -> dict[str, Any]:
        """What is in the set, without the images."""
        return {
            "dataset": self.dataset,
            "classes": self.num_classes,
            "ipc": self.ipc,
            "partition": self.partition,
            "soft_labels": self.soft_labels is not None,
            "image_shape": tuple(self.images.shape[1:]),
            "mean": self.mean,
            "std": self.std,
            "class_names": self.class_names,
            "settings": dict(self.settings),
            "fastdm": self.version,
        }

    def save(self, path: str | Path, *, canvases: bool = False) -> None:
        """Write the set to a file, atomically; its suffix says in which format.

        `.safetensors` keeps everything. `.pt` is the public code's format, `{"data": [[images, labels]],
        "accs_all_exps": {}}`, without class names, normalisation and settings; of a set with a partition it holds the
        decoded images, as the public code's evaluation takes them, or with `canvases` the canvases.
        """
        suffix = Path(path).suffix
        if suffix == ".pt":
            save_public([self], path, canvases=canvases)
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
            **({"partition": self.partition} if self.partition > 1 else {}),
        }
        metadata = {"format": _FORMAT, "about": json.dumps(about), "crc32": self.crc32()}
        tensors = {"images": images}
        if self.soft_labels is not None:
            tensors["soft_labels"] = self.soft_labels.detach().cpu().contiguous()
            metadata["soft_labels_crc32"] = str(crc32(tensors["soft_labels"]))
        with writing(path) as temporary:
            save_file(tensors, temporary, metadata)

    @classmethod
    def load(cls, path: str | Path, *, experiment: int = 0, dataset: Dataset | None = None) -> "SyntheticSet":
        """Set number `experiment`, counted from 0, of those that `load_all` reads."""
        sets = cls.load_all(path, dataset=dataset)
        if not 0 <= experiment < len(sets):
            raise FastDMError(f"{path} holds {len(sets)} sets, counted from 0; there is no set {experiment}")
        return sets[experiment]

    @classmethod
    def load_all(cls, path: str | Path, *, dataset: Dataset | None = None) -> "list[SyntheticSet]":
        """Read the set that `save` wrote, or those of a `.pt` file in the public code's format, one per experiment.

        A `.pt` file holds neither class names nor normalisation: these are taken from `dataset`; without it, the
        normalisation is the standard one of the data set that the file's name (`res_DM_CIFAR10_ConvNet_10ipc.pt`)
        names. Raises FastDMError, naming the file, for whatever cannot be used, and for sets that are not like the
        `dataset`.
        """
        path = Path(path)
        if is_zip(path):
            sets = _load_public(path, dataset)
        else:
            sets = [_load_safetensors(path)]
            if dataset is not None:
                check_compatible(str(path), sets[0].num_classes, sets[0].images.shape[1:], dataset)
        if not all(loaded.images.isfinite().all() for loaded in sets):
            raise FastDMError(f"{path} holds pixels that are not finite numbers")
        return sets

    def pixels(self) -> Tensor:
        """The images as they are looked at: de-normalised, clipped to [0, 1], uint8 [N, C, H, W] on the CPU."""
        images = self.images.detach().cpu()
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.mean, self.std))
        return ((images * std + mean).clamp(0, 1) * 255 + 0.5).to(torch.uint8)

    def save_picture(self, path: str | Path) -> None:
        """Write a PNG for people: landscape, enlarged, with class names. `save_grid` writes the public code's."""
        with writing(path) as temporary:
            picture(self.pixels(), self.class_names, self.ipc).save(temporary, format="PNG")

    def save_grid(self, path: str | Path, *, zoom: int = 1) -> None:
        """Write a PNG of all images, one class per row: de-normalised, clipped to [0, 1], each pixel `zoom` wide."""
        if zoom < 1:
            raise FastDMError(f"zoom is {zoom}; it must be at least 1")
        spaced = functional.pad(self.pixels(), (0, _GAP, 0, _GAP))
        rows = spaced.reshape(self.num_classes, self.ipc, *spaced.shape[1:])
        grid = functional.pad(rows.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1), (0, 0, _GAP, 0, _GAP, 0))
        with writing(path) as temporary:
            pixels = grid.repeat_interleave(zoom, 0).repeat_interleave(zoom, 1).squeeze(2).numpy()
            Image.fromarray(pixels).save(temporary, format="PNG")


def save_public(
    sets: Sequence[SyntheticSet],
    path: str | Path,
    accuracies: Mapping[str, Sequence[float]] | None = None,
    *,
    canvases: bool = False,
) -> None:
    """Write one set per experiment, with accuracies in [0, 1] by network, as the public code's `res_DM_….pt`.

    Sets with a partition are decoded, unless their `canvases` are wanted.
    """
    written = [synthetic if canvases else synthetic.expand() for synthetic in sets]
    write_public(path, [(synthetic.images, synthetic.labels) for synthetic in written], accuracies)


def dataset_name(path: str | Path) -> str:
    """The name of the data set that the sets in a file were condensed from: from the file, or from a `.pt`'s name."""
    path = Path(path)
    name = parse_file_name(path)[0] if is_zip(path) else _load_safetensors(path).dataset
    if not name:
        raise FastDMError(f"{path} does not say which data set it was condensed from; name the data set")
    return name


def check_compatible(what: str, num_classes: int, image_shape: Sequence[int], dataset: Dataset) -> None:
    """Raise FastDMError unless the data set has as many classes as `what`, and images of its shape (C, H, W)."""
    ours, theirs = (
        f"{classes} classes of {'x'.join(map(str, shape))} images"
        for classes, shape in ((num_classes, image_shape), (dataset.num_classes, dataset.image_shape))
    )
    if ours != theirs:
        raise FastDMError(f"{what} has {ours}, but data set {dataset.name} has {theirs}")


def _load_safetensors(path: Path) -> SyntheticSet:
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            images = file.get_tensor("images") if metadata.get("format") == _FORMAT else None
            soft_labels = file.get_tensor("soft_labels") if "soft_labels_crc32" in metadata else None
        if images is None:
            raise FastDMError(f"it is not of this version of fastdm ({_FORMAT})")
        checksums = [(metadata.get("crc32"), images), (metadata.get("soft_labels_crc32"), soft_labels)]
        if any(tensor is not None and stated != str(crc32(tensor)) for stated, tensor in checksums):
            raise FastDMError("its checksum does not match")
        about = json.loads(metadata.get("about", "{}"))
        known = {entry.name for entry in fields(SyntheticSet)} - {"images", "partition", "soft_labels"}
        if about.keys() - {"partition"} != known:
            raise FastDMError(
                f"it must state {', '.join(sorted(known))}, but states {', '.join(sorted(about)) or 'nothing'}"
            )
        if not (isinstance(about["dataset"], str) and isinstance(about["settings"], dict)):
            raise FastDMError("its dataset must be a name, and its settings values by name")
        for name in ("class_names", "mean", "std"):
            about[name] = tuple(about[name])
        return SyntheticSet(images=images, soft_labels=soft_labels, **about)
    except (SafetensorError, OSError, ValueError, TypeError, AttributeError) as error:
        raise FastDMError(f"{path} is not a condensed set, or is damaged: {error}") from error


def _load_public(path: Path, dataset: Dataset | None) -> list[SyntheticSet]:
    name, network = parse_file_name(path)
    settings = {"network": network} if network else {}
    loaded = []
    for images, labels in read_public(path)[0]:
        counts = torch.bincount(labels)
        if (counts != counts[0]).any():
            raise FastDMError(f"{path} holds classes of {int(counts.min())} and of {int(counts.max())} images")
        if dataset is None:
            normalisation = standard_normalisation(name, images.shape[1])
            class_names = tuple(map(str, range(len(counts))))
        else:
            check_compatible(str(path), len(counts), images.shape[1:], dataset)
            name, normalisation, class_names = dataset.name, (dataset.mean, dataset.std), dataset.class_names
        if normalisation is None:
            raise FastDMError(
                f"{path} does not say how its pixels are normalised; load it with its data set (dataset=…)"
            )
        pixels = images[labels.argsort(stable=True)].detach().float()
        loaded.append(SyntheticSet(pixels, class_names, *normalisation, name, settings))
    return loaded
