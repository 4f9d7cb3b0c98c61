"""Files of tensors in the layouts of public code: DC and DM (`res_DM_….pt`), MTT, IDC. They know no `SyntheticSet`."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from fastdm.errors import FastDMError
from fastdm.system.checks import check_regular
from fastdm.system.files import check_zip, crc32, is_zip, writing

Layout = Literal["public", "mtt", "idc"]

# What a pickle of NumPy's numbers and arrays names, by NumPy 2 and by NumPy 1: accuracies often are such.
_SCALAR = np.float64().__reduce__()[0]
_ARRAY = np.zeros(1).__reduce__()[0]
_NUMPY: list[Any] = [
    *((_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("_core", "core")),
    *((_ARRAY, f"numpy.{core}.multiarray._reconstruct") for core in ("_core", "core")),
    np.ndarray,
    np.dtype,
    *(type(np.dtype(kind)) for kind in (np.float16, np.float32, np.float64, np.int32, np.int64)),
]
_ABOUT = ("mean", "std", "class_names", "dataset", "settings", "version")


@dataclass(frozen=True)
class PublicFile:
    """What a file holds.

    sets: images and labels of every experiment; labels None where there are none.
    normalised: whether the layout has normalised pixels; else they lie in [0, 1].
    about: what a file of fastdm says besides: mean, std, class_names, dataset, settings (a list, one of each
        experiment), version.
    unused: what else is in it.
    """

    sets: list[tuple[Tensor, Tensor | None]]
    layout: Layout
    accuracies: dict[str, list[float]] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)
    unused: tuple[str, ...] = ()

    @property
    def normalised(self) -> bool:
        return self.layout != "idc"


def write_public(
    path: str | Path,
    sets: Sequence[tuple[Tensor, Tensor]],
    accuracies: Mapping[str, Sequence[float]] | None = None,
    about: Mapping[str, Any] | None = None,
    more: Mapping[str, Any] | None = None,
) -> None:
    """Write (images, labels) of every experiment as the public code's `res_DM_….pt`.

    `{"data": [[images, labels], …], "accs_all_exps": {network: [accuracies]}}`, CPU tensors, accuracies in [0, 1];
    with `about`, its keys and a checksum as further keys, which the public code does not look at. more: other keys.
    """
    data = [[_whole(images), labels] for images, labels in sets]
    found = {network: [*map(float, values)] for network, values in (accuracies or {}).items()}
    content: dict[str, Any] = {"data": data, "accs_all_exps": found}
    if about is not None:
        known = json.loads(json.dumps({name: about[name] for name in (*_ABOUT, "partition") if name in about}))
        content |= known | {"crc32": _checksum(data, found, known)}
    with writing(path) as temporary:
        torch.save({**content, **(more or {})}, temporary)


def write_mtt(path: Path, images: Tensor, labels: Tensor) -> None:
    """Write normalised images and, next to them, their labels as MTT does: `images_best.pt` and `labels_best.pt`."""
    if "images" not in path.name:
        raise FastDMError(f"{path} must have 'images' in its name, such as images_best.pt: the labels lie next to it")
    for target, tensor in ((path, images), (labels_of(path), labels)):
        with writing(target) as temporary:
            torch.save(_whole(tensor), temporary)


def write_idc(path: Path, images: Tensor, labels: Tensor) -> None:
    """Write images in [0, 1] and their labels as IDC does: `data.pt` of `[images, labels]`."""
    with writing(path) as temporary:
        torch.save([_whole(images), labels], temporary)


def _whole(tensor: Tensor) -> Tensor:
    """The tensor on the CPU, copied if it is a part of a larger one, all of which would be written."""
    tensor = tensor.detach().cpu()
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def read_public(path: str | Path) -> PublicFile:
    """Read a file in one of these layouts, of any version of torch; labels of MTT from the file next to it.

    Raises FastDMError, naming the file, for what holds anything else. Nothing in it is executed.
    """
    path = Path(path)
    content = _load(path)
    if isinstance(content, Tensor):
        labels = labels_of(path)
        read = _load(labels) if labels != path and labels.exists() else None
        found = PublicFile([_labelled(path, content, read)], "mtt")
    elif isinstance(content, list | tuple) and len(content) == 2:
        found = PublicFile([_labelled(path, *content)], "idc")
    else:
        found = _read_dict(path, content)
    return found


def parse_file_name(path: Path) -> tuple[str, str]:
    """Data set and network in the name of a `res_DM_CIFAR10_ResNet18_AP_10ipc.pt`; "" where it has another name."""
    parts = re.match(r"res_[^_]+_(.+?)_([^_]+(?:_AP)?)_\d+ipc", path.name)
    return (parts[1], parts[2]) if parts else ("", "")


def _load(path: Path) -> Any:
    check_regular(path)
    try:
        if is_zip(path):
            check_zip(path)
        with torch.serialization.safe_globals(_NUMPY):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many kinds, of many lines, for what is not a file of its own
        raise FastDMError(
            f"{path} is not a .pt file, or is damaged, or contains more than tensors and numbers"
        ) from error


def labels_of(images: Path) -> Path:
    """The file that MTT writes the labels of `images_best.pt` or `images_zca_best.pt` to."""
    return images.with_name(images.name.replace("images_zca", "images").replace("images", "labels"))


def _read_dict(path: Path, content: Any) -> PublicFile:
    try:
        data = content["data"]
        if len(data) == 2 and isinstance(data[0], Tensor):  # one experiment, not in a list
            data = [data]
        sets = [(images, labels) for images, labels in data]
        accuracies = {
            str(network): _numbers(values) for network, values in (content.get("accs_all_exps") or {}).items()
        }
    except (TypeError, KeyError, ValueError, AttributeError, IndexError, OverflowError, RuntimeError) as error:
        raise FastDMError(f'{path} holds no {{"data": [[images, labels], …]}} of the public code') from error
    if not sets:
        raise FastDMError(f"{path} holds no experiment")
    labelled = [_labelled(path, images, labels) for images, labels in sets]
    about = {name: content[name] for name in (*_ABOUT, "partition") if name in content}
    unused = sorted(str(name) for name in content.keys() - {"data", "accs_all_exps"})
    if len(about.keys() - {"partition"}) + ("crc32" in content) < len(_ABOUT):  # one of them may have been spoilt
        about = {}
    else:
        _check_about(path, about, len(sets))
        if content.get("crc32") != _checksum(labelled, accuracies, about):
            raise FastDMError(f"{path} is damaged: its checksum does not match")
    return PublicFile(labelled, "public", accuracies, about, () if about else tuple(unused))


def _numbers(values: Any) -> list[float]:
    """The accuracies of a network: numbers, NumPy's, or arrays or tensors of them."""
    several = isinstance(values, list | tuple) or getattr(values, "ndim", 0) > 0
    return [float(value) for each in (values if several else [values]) for value in np.ravel(each)]


def _labelled(path: Path, images: object, labels: object) -> tuple[Tensor, Tensor | None]:
    """Images and labels, if they are such; FastDMError, naming the file, if not."""
    if not (isinstance(images, Tensor) and images.ndim == 4 and images.is_floating_point()):
        raise FastDMError(f"{path} contains images that are not a floating-point [N, C, H, W] tensor: {kind(images)}")
    if len(images) == 0:
        raise FastDMError(f"{path} holds 0 images")
    if labels is not None and not isinstance(labels, Tensor):
        raise FastDMError(f"{path} contains labels that are not a tensor: {kind(labels)}")
    return images, labels


def _check_about(path: Path, about: Mapping[str, Any], experiments: int) -> None:
    checks: dict[str, Callable[[Any], bool]] = {
        "mean": lambda value: isinstance(value, list),
        "std": lambda value: isinstance(value, list),
        "class_names": lambda value: isinstance(value, list),
        "dataset": lambda value: isinstance(value, str),
        "version": lambda value: isinstance(value, str),
        "settings": lambda value: (
            isinstance(value, list) and len(value) == experiments and all(isinstance(each, dict) for each in value)
        ),
    }
    for name, check in checks.items():
        if name not in about or not check(about[name]):
            raise FastDMError(f"{path} is damaged: its {name} is missing, or not what it should be")


def _checksum(data: Sequence[Sequence[Any]], accuracies: Mapping[str, Any], about: Mapping[str, Any]) -> str:
    """CRC-32 of all tensors, and of the rest as JSON."""
    tensors = [tensor.detach().contiguous() for pair in data for tensor in pair if tensor is not None]
    facts = [[str(tensor.dtype), list(tensor.shape)] for tensor in tensors]
    try:
        text = json.dumps([facts, accuracies, about], sort_keys=True)
    except (TypeError, ValueError, RecursionError):
        return ""  # no checksum of anything that `write_public` writes
    return str(crc32(*tensors, text=text))


def kind(value: object) -> str:
    """A tensor's dtype and shape, else the type's name."""
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
