"""Arrays, tensors and files of arrays as a `Dataset`."""

import math
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from fastdm.data.normalisation import normalisation
from fastdm.data.pool import Dataset, Pool
from fastdm.errors import FastDMError
from fastdm.system.checks import check_regular
from fastdm.system.device import free_memory
from fastdm.system.files import check_zip, is_zip
from fastdm.system.notes import Tally
from fastdm.system.text import size_text

Split = tuple[Tensor, Tensor]  # images uint8 [N, C, H, W] and labels int64 [N]


def make_dataset(name: str, train: Split, test: Split | None, class_names: Sequence[str] | None = None) -> Dataset:
    """Sort both parts by class; `class_names` by default the numbers of the labels."""
    images, labels = train
    if len(images) == 0:
        raise FastDMError(f"data set {name}: there is no training image")
    if len(labels) == 0:
        raise FastDMError(f"data set {name}: {len(images)} train images, but 0 labels")
    classes = len(class_names) if class_names is not None else int(labels.max()) + 1
    if classes > len(images):  # refused before anything of that size is made
        raise FastDMError(
            f"data set {name}: {len(images)} training images cannot belong to {classes} classes; labels must be "
            f"0..{classes - 1} without gaps"
        )
    pool = make_pool(name, "train", images, labels, classes)
    empty = (pool.class_sizes == 0).nonzero().flatten().tolist()
    if empty:
        listed = ", ".join(str(label) if class_names is None else repr(class_names[label]) for label in empty[:5])
        raise FastDMError(
            f"data set {name}: no training image of class {listed}{', …' if len(empty) > 5 else ''}; labels must be "
            f"0..{classes - 1} without gaps"
        )
    test_pool = None
    if test is not None:
        test_pool = make_pool(name, "test", *test, classes)
        if test_pool.images.shape[1:] != pool.images.shape[1:]:
            raise FastDMError(
                f"data set {name}: test images are {_shape_text(test_pool.images)}, training images "
                f"{_shape_text(pool.images)}; they must be of one shape"
            )
    names = tuple(class_names) if class_names is not None else tuple(map(str, range(classes)))
    mean, std = normalisation(name, pool.images)
    return Dataset(name, pool, test_pool, names, mean, std)


def make_pool(name: str, part: str, images: Tensor, labels: Tensor, classes: int) -> Pool:
    if len(images) != len(labels):
        raise FastDMError(f"data set {name}: {len(images)} {part} images, but {len(labels)} labels")
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        wrong = int(labels.min()) if labels.min() < 0 else int(labels.max())
        raise FastDMError(f"data set {name}: {part} label {wrong} is not one of 0..{classes - 1}")
    if (labels.diff() < 0).any():
        images = images[labels.argsort(stable=True)]
    offsets = torch.zeros(classes + 1, dtype=torch.int64)
    torch.cumsum(torch.bincount(labels, minlength=classes), 0, out=offsets[1:])
    return Pool(images.contiguous(), offsets)


def _shape_text(images: Tensor) -> str:
    return "x".join(map(str, images.shape[1:]))


def as_images(name: str, array: ArrayLike | Tensor) -> Tensor:
    """Uint8 [N, C, H, W] of any array of images that `open_dataset` describes."""
    images = given = as_tensor(f"data set {name}", "images", array)
    if images.ndim == 3:
        images = images[:, None]
    elif images.ndim == 4 and images.shape[1] not in (1, 3):
        images = images.permute(0, 3, 1, 2)
    if images.ndim != 4 or images.shape[1] not in (1, 3) or 0 in images.shape[2:]:
        raise FastDMError(
            f"data set {name}: images of shape {tuple(given.shape)}; they must be [N, H, W], "
            "[N, H, W, C] or [N, C, H, W] with 1 or 3 channels and at least one pixel"
        )
    if images.dtype == torch.uint8:
        return images
    if not images.is_floating_point():
        raise FastDMError(f"data set {name}: pixels are {images.dtype}; they must be uint8 or floating-point in [0, 1]")
    bytes_ = torch.empty(images.shape, dtype=torch.uint8)
    for start in range(0, len(images), 4096):
        chunk = images[start : start + 4096].float()
        if chunk.isnan().any():
            raise FastDMError(f"data set {name}: some pixels are NaN")
        low, high = chunk.aminmax()
        if low < 0 or high > 1:
            raise FastDMError(
                f"data set {name}: floating-point pixels must lie in [0, 1], not {float(low):g}..{float(high):g}; "
                "give values of 0..255 as uint8"
            )
        bytes_[start : start + len(chunk)] = (chunk * 255).round()
    return bytes_


def as_labels(name: str, array: ArrayLike | Tensor) -> Tensor:
    labels = as_tensor(f"data set {name}", "labels", array)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise FastDMError(
            f"data set {name}: labels must be integers of shape [N], not {labels.dtype} {list(labels.shape)}"
        )
    whole = labels.long()
    if labels.dtype == torch.uint64 and len(whole) and whole.min() < 0:
        raise FastDMError(f"data set {name}: some labels are 2^63 or more; they must be 0..classes - 1")
    return whole


def empty_images(count: int, shape: Sequence[int], advice: str) -> Tensor:
    """Memory for images, uint8 [count, *shape]; FastDMError, with the advice, if there is not that much."""
    wanted, free = count * math.prod(shape), free_memory()
    if wanted > free:
        raise FastDMError(
            f"{count} images of {'x'.join(map(str, shape))} take {size_text(wanted)} of memory, of which "
            f"{size_text(free)} are free; {advice}"
        )
    return torch.empty(count, *shape, dtype=torch.uint8)


def plain(what: str, tensor: Tensor) -> Tensor:
    """The tensor without gradient, on the CPU, its values one after another; FastDMError if it has none."""
    if tensor.is_meta:
        raise FastDMError(f"{what} has a tensor on the device meta, which holds no values")
    return (tensor.detach() if tensor.layout == torch.strided else tensor.detach().to_dense()).cpu()


def as_tensor(name: str, what: str, array: ArrayLike | Tensor) -> Tensor:
    """The array, or list of tensors, as a tensor on the CPU; FastDMError, saying what of which set, if it is none."""
    if isinstance(array, Tensor):
        return plain(name, array)
    try:
        if isinstance(array, list | tuple) and len(array) and all(isinstance(item, Tensor) for item in array):
            return torch.stack([plain(name, item) for item in array])
        if isinstance(array, np.ma.MaskedArray) and np.ma.is_masked(array):
            raise FastDMError(f"{name}: some of its {what} are masked; fill them, or leave the images out")
        values = np.asarray(array)
        if values.dtype.kind not in "biufc":
            raise FastDMError(f"{name}: its {what} are not an array of numbers, but of {values.dtype}")
        values = values.astype(values.dtype.newbyteorder("="), copy=False)
        return torch.from_numpy(np.require(values, requirements=["C", "W"]))
    except FastDMError:
        raise
    except (TypeError, ValueError, RuntimeError) as error:  # ragged lists, strings, objects
        raise FastDMError(f"{name}: its {what} are not an array of numbers of one shape ({error})") from error


def from_arrays(arrays: Sequence[ArrayLike | Tensor], name: str) -> Dataset:
    if not isinstance(arrays, tuple | list) or len(arrays) not in (2, 4):
        raise FastDMError(
            "a data set of arrays is (images, labels) or (images, labels, test_images, test_labels), not "
            f"{type(arrays).__name__}{f' of {len(arrays)}' if isinstance(arrays, tuple | list) else ''}"
        )
    splits = [(as_images(name, arrays[i]), as_labels(name, arrays[i + 1])) for i in range(0, len(arrays), 2)]
    return make_dataset(name, splits[0], splits[1] if len(splits) == 2 else None)


_NPZ_KEYS = (
    ("x_train", "y_train", "x_test", "y_test"),
    ("train_images", "train_labels", "test_images", "test_labels"),  # MedMNIST
)


def open_npz(path: Path, name: str) -> Dataset:
    """The arrays of an .npz file, under the names of Keras (x_train, …) or of MedMNIST (train_images, …)."""
    check_regular(path)
    try:
        with zipfile.ZipFile(path) as archive:
            wanted = sum(entry.file_size for entry in archive.infolist())
        if wanted > free_memory():
            raise FastDMError(f"its arrays take {size_text(wanted)}, more than the memory that is free")
        with np.load(path, allow_pickle=False) as file:
            keys = set(file.files)
            chosen = next((names for names in _NPZ_KEYS if names[0] in keys or names[1] in keys), _NPZ_KEYS[0])
            arrays = {key: file[key] for key in chosen if key in keys}
    except Exception as error:  # numpy, zipfile and zlib raise each their own
        raise FastDMError(f"{path} is not a readable .npz file: {error}") from error
    if tuple(arrays) not in (chosen[:2], chosen):
        raise FastDMError(
            f"{path} must hold x_train and y_train, and for a test part both x_test and y_test (or train_images, "
            f"train_labels, test_images, test_labels); it holds {', '.join(sorted(keys)) or 'nothing'}"
        )
    tally = Tally()
    for key in sorted(keys - set(chosen)):
        tally.add("arrays that are not used", key)
    tally.report(path)
    return from_arrays(list(arrays.values()), name)


def open_pt(path: Path, name: str) -> Dataset:
    """The tensors of a `.pt` file: a dict like the public code's tinyimagenet.pt, or those of `from_arrays`."""
    check_regular(path)
    keys = ("classes", "images_train", "labels_train")
    try:
        # Before version 1.6 torch wrote files that have no CRC-32 and cannot be mapped.
        if zipped := is_zip(path):
            check_zip(path)
        data = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # torch.load raises many kinds for what is not a file of its own
        raise FastDMError(f"{path} is not a readable .pt file: {str(error).partition(chr(10))[0]}") from error
    if isinstance(data, tuple | list) and len(data) in (2, 4):
        return _kept(from_arrays(data, name), data if zipped else ())
    if not isinstance(data, dict) or not data.keys() >= set(keys) or not isinstance(data["classes"], tuple | list):
        raise FastDMError(
            f"{path} is not a data set: a .pt file must hold a dict of {', '.join(keys)} and, for a test part, "
            "images_val and labels_val"
        )
    parts = [part for part in ("train", "val") if f"images_{part}" in data or f"labels_{part}" in data]
    tensors = [f"{what}_{part}" for part in parts for what in ("images", "labels")]
    if missing := [key for key in tensors if key not in data]:
        raise FastDMError(f"{path} has no {missing[0]}; a test part must have both images_val and labels_val")
    tally = Tally()
    for key in sorted(str(key) for key in data.keys() - {"classes", *tensors, *_PUBLIC}):
        tally.add("entries that are not used", key)
    tally.report(path)
    splits = [(as_images(name, data[f"images_{part}"]), as_labels(name, data[f"labels_{part}"])) for part in parts]
    test = splits[1] if len(splits) == 2 else None
    dataset = make_dataset(name, splits[0], test, [str(label) for label in data["classes"]])
    return _kept(dataset, [data[key] for key in tensors] if zipped else ())


_PUBLIC = ("data", "accs_all_exps")
"""What `export` writes next to it: the same images, for the public code."""


def _kept(dataset: Dataset, mapped: Sequence[Any]) -> Dataset:
    """The data set with the images that it shares with mapped tensors copied to memory, where that holds them.

    What is written to the file later would change those that are mapped, or end the process if the file gets shorter.
    """
    places = {
        tensor.untyped_storage().data_ptr()
        for tensor in mapped
        if isinstance(tensor, Tensor) and tensor.layout == torch.strided
    }

    def kept(pool: Pool) -> Pool:
        is_mapped = pool.images.untyped_storage().data_ptr() in places
        fits = pool.images.numel() <= free_memory()
        return replace(pool, images=pool.images.clone()) if is_mapped and fits else pool

    return replace(dataset, train=kept(dataset.train), test=None if dataset.test is None else kept(dataset.test))
