"""The public code's result file, `res_DM_….pt`."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastdm.errors import FastDMError
from fastdm.system.files import writing

_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
# The accuracies of the public code are numpy.float64: what a pickle of such a number names, by NumPy 2 and by NumPy 1.
_SCALAR = np.float64().__reduce__()[0]
_NUMPY_NUMBER: list[Any] = [
    (_SCALAR, "numpy._core.multiarray.scalar"),
    (_SCALAR, "numpy.core.multiarray.scalar"),
    np.dtype,
    type(np.dtype(np.float64)),
]


def write_public(
    path: str | Path, sets: Sequence[tuple[Tensor, Tensor]], accuracies: Mapping[str, Sequence[float]] | None = None
) -> None:
    """Write (images, labels) of every experiment as the public code's `res_DM_….pt`.

    `{"data": [[images, labels], …], "accs_all_exps": {network: [accuracies]}}`, CPU tensors, accuracies in [0, 1].
    """
    data = [[images.detach().cpu().clone(), labels] for images, labels in sets]
    found = {network: list(values) for network, values in (accuracies or {}).items()}
    with writing(path) as temporary:
        torch.save({"data": data, "accs_all_exps": found}, temporary)


def read_public(path: str | Path) -> tuple[list[tuple[Tensor, Tensor]], dict[str, list[float]]]:
    """(images, labels) of every experiment, and the accuracies of every network, of a `res_DM_….pt`."""
    try:
        with torch.serialization.safe_globals(_NUMPY_NUMBER):
            data = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many kinds, of many lines, for what is not a file of its own
        raise FastDMError(
            f"{path} is not a .pt file, or is damaged, or contains more than tensors and numbers"
        ) from error
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


def parse_file_name(path: Path) -> tuple[str, str]:
    """Data set and network in the name of a `res_DM_CIFAR10_ResNet18_AP_10ipc.pt`; "" where it has another name."""
    parts = re.match(r"res_[^_]+_(.+?)_([^_]+(?:_AP)?)_\d+ipc", path.name)
    return (parts[1], parts[2]) if parts else ("", "")


def _check_labelled(path: str | Path, images: object, labels: object) -> None:
    """Raise FastDMError, naming the file, for what are not images with one label each."""
    if not (isinstance(images, Tensor) and images.ndim == 4 and images.is_floating_point()):
        raise FastDMError(f"{path} contains images that are not a floating-point [N, C, H, W] tensor: {_kind(images)}")
    if not (isinstance(labels, Tensor) and labels.ndim == 1 and labels.dtype in _INTEGERS):
        raise FastDMError(f"{path} contains labels that are not an integer [N] tensor: {_kind(labels)}")
    if len(images) != len(labels) or len(images) == 0:
        raise FastDMError(f"{path} holds {len(images)} images and {len(labels)} labels; there must be one for each")
    if labels.min() < 0:
        raise FastDMError(f"{path} holds the label {int(labels.min())}; labels count from 0")


def _kind(value: object) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
