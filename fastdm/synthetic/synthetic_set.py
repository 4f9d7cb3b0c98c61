"""The condensed set: its images, what is needed to use them, and its files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from numpy.typing import ArrayLike
from safetensors import SafetensorError
from torch import Tensor
from torch.utils.data import TensorDataset

from fastdm.data.arrays import as_tensor
from fastdm.data.normalisation import per_channel, standard_normalisation
from fastdm.data.pool import Dataset
from fastdm.errors import FastDMError, one_of, whole_number
from fastdm.synthetic.display import display_pixels, write_grid
from fastdm.synthetic.labelled import class_sorted, normalised_pixels
from fastdm.synthetic.partition import check_partition, expand
from fastdm.synthetic.picture import picture
from fastdm.synthetic.public_file import PublicFile, parse_file_name, read_public, write_idc, write_mtt, write_public
from fastdm.synthetic.set_file import ABOUT, check_about, check_writable, is_safetensors, read_set, write_set
from fastdm.system.checks import all_finite, check_normalisation
from fastdm.system.files import crc32, user_path, writing
from fastdm.system.notes import Tally
from fastdm.version import __version__

Format = Literal["safetensors", "public", "mtt", "idc"]


@dataclass(frozen=True, eq=False)
class SyntheticSet:
    """A small set of images in place of a data set.

    images: float32 [classes * ipc, C, H, W], normalised: pixel = (x − mean) / std with x in [0, 1], or beyond
    where the set was condensed without `clamp`. Class-sorted: image j of class c is row `c * ipc + j`.
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
        try:
            mean, std = check_normalisation(self.mean, self.std, shape[1])
        except ValueError as error:
            raise FastDMError(str(error)) from error
        if not all(isinstance(name, str) for name in self.class_names):
            raise FastDMError("the class names of a synthetic set must be texts")
        for name, value in (("mean", mean), ("std", std), ("class_names", tuple(self.class_names))):
            object.__setattr__(self, name, value)
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
        return torch.arange(self.num_classes, device="cpu").repeat_interleave(self.ipc)

    def expand(self) -> "SyntheticSet":
        """The set of the training images that the canvases hold, decoded: ipc · partition² per class.

        The set itself where there is no partition.
        """
        if self.partition == 1:
            return self
        return replace(self, images=expand(self.images.detach(), self.partition), partition=1)

    def as_dataset(self) -> TensorDataset:
        """(normalised image, label) pairs for a torch `DataLoader`, without gradient, decoded if need be."""
        decoded = self.expand()
        return TensorDataset(decoded.images.detach(), decoded.labels.to(self.images.device))

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

    def _check_finite(self, what: str | Path) -> None:
        if not all_finite(self.images):
            raise FastDMError(f"{what} holds pixels that are not finite numbers")

    def _about(self) -> dict[str, Any]:
        about = {
            name: dict(value) if name == "settings" else value for name in ABOUT for value in [getattr(self, name)]
        }
        check_writable(about)
        return about | ({"partition": self.partition} if self.partition > 1 else {})

    def save(self, path: str | Path, *, format: Format | None = None, canvases: bool = False) -> None:
        """Write the set to a file, atomically.

        format, by default that of the suffix:

        - "safetensors" (`.safetensors`): everything;
        - "public" (`.pt`): the public DM's `{"data": [[images, labels]], "accs_all_exps": {}}`, with mean, std, class
          names and settings as further keys;
        - "mtt": MTT's pair of files, normalised images in `path` and their labels next to it; `path` must have "images"
          in its name (`images_best.pt`, `labels_best.pt`);
        - "idc": IDC's `[images, labels]`, images in [0, 1]; pixels outside are clipped, which a warning counts.

        Of a set with a partition, "safetensors" and "idc" hold the canvases, which IDC's relatives decode themselves
        (`-f 2`); "public" and "mtt" hold the decoded images, or with `canvases` the canvases.
        """
        path = user_path(path)
        one_of("format", format, (None, "safetensors", "public", "mtt", "idc"))
        chosen = format or {".safetensors": "safetensors", ".pt": "public"}.get(path.suffix)
        if chosen is None:
            raise FastDMError(f"{path} must end in .safetensors, or in .pt for the public code's format")
        own = ".safetensors" if chosen == "safetensors" else ".pt"
        if path.suffix in {".safetensors", ".pt", ".npz"} - {own}:
            raise FastDMError(f"{path} ends in {path.suffix}, but format {chosen!r} is that of a {own} file")
        self._check_finite("the set")
        tally = Tally()
        if self.soft_labels is not None and chosen != "safetensors":
            tally.say("soft labels are left out, which only a .safetensors file holds")
        if chosen == "public":
            save_public([self], path, canvases=canvases)
        elif chosen == "safetensors":
            soft = None if self.soft_labels is None else self.soft_labels.detach().cpu().contiguous()
            write_set(path, self.images.detach().cpu().contiguous(), self._about(), soft)
        elif chosen == "mtt":
            written = self if canvases else self.expand()
            write_mtt(path, written.images, written.labels)
        else:
            images = self._denormalised()
            # Clamped pixels are black or white in float32 only to the rounding of x * std + mean, a few 2⁻²⁴.
            outside = int(((images < -1e-6) | (images > 1 + 1e-6)).sum())
            if outside:
                tally.say(f"{outside:,} of {images.numel():,} pixel values lie outside [0, 1] and are clipped")
            write_idc(path, images.clamp(0, 1), self.labels)
        tally.report(path)

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        experiment: int = 0,
        dataset: Dataset | None = None,
        normalised: bool | None = None,
        partition: int | None = None,
    ) -> "SyntheticSet":
        """Read one set of a file: number `experiment`, counted from 0, of those that `load_all` reads."""
        sets = cls.load_all(path, dataset=dataset, normalised=normalised, partition=partition)
        if not 0 <= experiment < len(sets):
            raise FastDMError(f"{path} holds {number_of_sets(sets)}, counted from 0; there is no set {experiment}")
        return sets[experiment]

    @classmethod
    def load_all(
        cls,
        path: str | Path,
        *,
        dataset: Dataset | None = None,
        normalised: bool | None = None,
        partition: int | None = None,
    ) -> "list[SyntheticSet]":
        """Read the set that `save` wrote, in any format, or those of a public code's file, one per experiment.

        Files of others hold neither class names nor normalisation: these are taken from `dataset`; without it, the
        normalisation is the standard one of the data set that the file's name (`res_DM_CIFAR10_ConvNet_10ipc.pt`)
        names. A set of some of the classes (a step of continual learning) has the names of those.

        normalised: whether the pixels of such a file are; by default as its layout has them: normalised in DM's and
        MTT's (`images_best.pt`, with `labels_best.pt` next to it), in [0, 1] in IDC's (`data.pt`).
        partition: f, if the images of such a file are canvases of f × f training images, as IDC and its relatives write
        them with `-f 2`, their default: the file does not say. By default they are images as they are.

        What is converted, such as soft labels, is named in a warning of the logger "fastdm". Raises FastDMError, naming
        the file, for whatever cannot be used, and for sets that are not like the `dataset`.
        """
        path = user_path(path)
        if not isinstance(dataset, Dataset | None):
            raise FastDMError(f"dataset is {str(dataset)[:80]!r}; it must be what fastdm.open_dataset gives")
        if is_safetensors(path) or path.suffix == ".safetensors":
            _check_described(path, normalised)
            sets = [_load_safetensors(path)]
            if dataset is not None:
                check_compatible(str(path), sets[0].num_classes, sets[0].images.shape[1:], dataset)
        else:
            sets = _load_public(path, dataset, normalised, partition)
        if partition not in (None, sets[0].partition):
            raise FastDMError(f"partition is {partition}, but {path} says that its own is {sets[0].partition}")
        for loaded in sets:
            loaded._check_finite(path)
        return sets

    @classmethod
    def from_tensors(
        cls,
        images: ArrayLike | Tensor,
        labels: ArrayLike | Tensor | None = None,
        *,
        dataset: Dataset | str,
        normalised: bool | None = None,
        partition: int = 1,
        settings: Mapping[str, Any] | None = None,
    ) -> "SyntheticSet":
        """A set of images that others have made: [N, C, H, W], in any order, equally many of each class.

        labels: integers [N]; floating-point and soft ones ([N, classes]) are converted, with a warning of the logger
        "fastdm". None: the images are sorted by class.
        dataset: what was condensed, or the name of a data set whose normalisation is known, such as "CIFAR10".
        normalised: whether pixels are (x − mean) / std with the data set's mean and std (the default for floating-point
        images), or lie in [0, 1]; uint8 images are 0..255.
        partition: f, if the images are canvases of f × f training images.

        >>> import fastdm
        >>> digits = fastdm.open_dataset("digits")
        >>> images = digits.train.images[digits.train.class_offsets[:-1]] / 255
        >>> synthetic = fastdm.SyntheticSet.from_tensors(images, range(10), dataset=digits, normalised=False)
        >>> synthetic.ipc, synthetic.num_classes
        (1, 10)
        """
        if not isinstance(dataset, Dataset | str):
            raise FastDMError(
                f"dataset is {str(dataset)[:80]!r}; it must be what fastdm.open_dataset gives, or the name of one"
            )
        pixels = as_tensor("the set", "images", images)
        classes = None if labels is None else as_tensor("the set", "labels", labels)
        if pixels.dtype == torch.uint8:
            if normalised:
                raise FastDMError("images of uint8 are 0..255; they cannot be normalised")
            pixels, normalised = pixels.float() / 255, False
        tally = Tally()
        try:
            result = _from_tensors(
                "the set", pixels, classes, dataset, normalised is None or normalised, dict(settings or {}), tally
            )
            result = replace(result, partition=partition)
        finally:
            tally.report("the set of tensors")
        result._check_finite("the set")
        return result

    def pixels(self) -> Tensor:
        """The images for display: de-normalised, clipped to [0, 1], uint8 [N, C, H, W] on the CPU."""
        return display_pixels(self.images, self.mean, self.std)

    def _denormalised(self) -> Tensor:
        mean, std = (per_channel(values) for values in (self.mean, self.std))
        return self.images.detach().cpu() * std + mean

    def save_picture(self, path: str | Path) -> None:
        """Write a PNG for people: landscape, enlarged, with class names. `save_grid` writes the public code's."""
        with writing(path) as temporary:
            picture(self.pixels(), self.class_names, self.ipc).save(temporary, format="PNG")

    def save_grid(self, path: str | Path, *, zoom: int = 1) -> None:
        """Write a picture of all images, one class per row: de-normalised, clipped to [0, 1], each pixel `zoom` wide.

        The suffix says in which format: `.png`, or `.jpg` and `.jpeg`, which are smaller and not exact.
        """
        write_grid(path, self.pixels(), self.num_classes, zoom=zoom)


def save_public(
    sets: Sequence[SyntheticSet],
    path: str | Path,
    accuracies: Mapping[str, Sequence[float]] | None = None,
    *,
    canvases: bool = False,
    more: Mapping[str, Any] | None = None,
) -> None:
    """Write one set per experiment, with accuracies in [0, 1] by network, as the public code's `res_DM_….pt`.

    Mean, std, class names, data set and settings are further keys, so that `SyntheticSet.load` needs nothing else. Sets
    with a partition are decoded, unless their `canvases` are wanted. more: keys for others, which are not read again.
    """
    written = [synthetic if canvases else synthetic.expand() for synthetic in sets]
    abouts = [synthetic._about() for synthetic in written]
    common = {name: [about.get(name) for about in abouts] for name in (*ABOUT[:4], "partition")}
    for name, values in common.items():
        if any(value != values[0] for value in values):
            raise FastDMError(f"the sets of one file must have one {name}; write a file for each data set")
    about = None
    if abouts:
        about = abouts[0] | {"settings": [each["settings"] for each in abouts]}
    write_public(path, [(synthetic.images, synthetic.labels) for synthetic in written], accuracies, about, more)


def number_of_sets(sets: Sequence[SyntheticSet]) -> str:
    """How many there are, in words."""
    return f"{len(sets)} {'set' if len(sets) == 1 else 'sets'}"


def dataset_name(path: str | Path) -> str:
    """The name of the data set that the sets in a file were condensed from: from the file, or from a `.pt`'s name."""
    path = user_path(path)
    if is_safetensors(path) or path.suffix == ".safetensors":
        name = _load_safetensors(path).dataset
    else:
        name = read_public(path).about.get("dataset") or parse_file_name(path)[0]
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
        raise FastDMError(f"{what} has {ours}, but data set {dataset.name} has {theirs}; name its own (--dataset)")


def _load_safetensors(path: Path) -> SyntheticSet:
    try:
        images, about, soft_labels = read_set(path)
        return SyntheticSet(images=images, soft_labels=soft_labels, **about)
    except (SafetensorError, OSError, ValueError, TypeError, AttributeError) as error:
        raise FastDMError(f"{path} is not a condensed set, or is damaged: {error}") from error


def _load_public(
    path: Path, dataset: Dataset | None, normalised: bool | None, partition: int | None
) -> list[SyntheticSet]:
    file = read_public(path)
    if file.about:
        _check_described(path, normalised)
        return _described(path, file, dataset)
    name, network = parse_file_name(path)
    settings = {"network": network} if network else {}
    pixels_are = file.normalised if normalised is None else normalised
    tally = Tally()
    if file.unused:
        tally.add("entries that are not used", file.unused[0], len(file.unused))
    if partition is None and file.layout == "idc":
        tally.say(
            "the images are taken as they are; if they are canvases of f by f, as IDC's are by default (-f 2), load it "
            "with partition=f (--factor f)"
        )
    try:
        sets = [
            _from_tensors(str(path), images, labels, name if dataset is None else dataset, pixels_are, settings, tally)
            for images, labels in file.sets
        ]
        return [replace(each, partition=1 if partition is None else partition) for each in sets]
    finally:
        tally.report(path)


def _check_described(path: Path, normalised: bool | None) -> None:
    if normalised is False:
        raise FastDMError(f"normalised is False, but {path} says how its pixels are normalised; leave that out")


def _described(path: Path, file: PublicFile, dataset: Dataset | None) -> list[SyntheticSet]:
    """The sets of a `.pt` that fastdm wrote, which says all about them; the network at least in the file's name."""
    sets, tally = [], Tally()
    _, network = parse_file_name(path)
    named = {"network": network} if network else {}
    for (images, labels), settings in zip(file.sets, file.about["settings"], strict=True):
        try:
            about = check_about(file.about | {"settings": named | settings})
            pixels, present = class_sorted(str(path), images, labels, len(about["class_names"]), tally)
            if len(present) != len(about["class_names"]):
                raise FastDMError("images of some classes are missing")
            sets.append(SyntheticSet(images=pixels, **about))
        except FastDMError as error:
            raise FastDMError(f"{path} is damaged: {error}") from error
        if dataset is not None:
            check_compatible(str(path), sets[-1].num_classes, pixels.shape[1:], dataset)
    return sets


def _from_tensors(
    what: str,
    images: Tensor,
    labels: Tensor | None,
    dataset: Dataset | str,
    is_normalised: bool,
    settings: dict[str, Any],
    tally: Tally,
) -> SyntheticSet:
    known = None if isinstance(dataset, str) else dataset
    pixels, present = class_sorted(what, images, labels, None if known is None else known.num_classes, tally)
    if known is not None:
        check_compatible(what, known.num_classes, pixels.shape[1:], known)
        name, normalisation = known.name, (known.mean, known.std)
        class_names = tuple(known.class_names[label] for label in present)
    else:
        name, class_names = str(dataset), tuple(map(str, present))
        preset = standard_normalisation(name, pixels.shape[1])
        if preset is None:
            raise FastDMError(
                f"{what} does not say how its pixels are normalised; load it with its data set (dataset=…)"
            )
        normalisation = preset
    pixels = normalised_pixels(what, pixels, *normalisation, is_normalised, tally)
    return SyntheticSet(pixels, class_names, *normalisation, name, settings)
