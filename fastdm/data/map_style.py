"""PyTorch's map-style datasets, such as torchvision's, as a `Dataset`."""

from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import IterableDataset

from fastdm.data.arrays import Split, as_images, empty_images, make_dataset
from fastdm.data.decode import Filter, Fit, Pixels, eight_bits, resize
from fastdm.data.folders import folder_name
from fastdm.data.pool import Dataset
from fastdm.errors import FastDMError, whole_number
from fastdm.system.memory import is_exhausted
from fastdm.system.notes import Tally

_IMAGE_KEYS = ("image", "img")
_LABEL_KEYS = ("label", "labels", "fine_label")
"""What Hugging Face's data sets call them."""

Resizing = tuple[tuple[int, int], Filter, Fit]


def is_map_style(source: object) -> bool:
    """Whether `source` is a PyTorch dataset, or like one: items by number, and neither an array nor a sequence."""
    if isinstance(source, torch.utils.data.Dataset):
        return True
    if isinstance(source, Tensor | np.ndarray | Sequence | dict) or hasattr(source, "__array__"):
        return False
    return hasattr(source, "__getitem__") and hasattr(source, "__len__")


def parts_of(source: object) -> tuple[Any, ...]:
    """The one or two map-style datasets that `source` is or holds (train, test); empty if it is something else."""
    if is_map_style(source):
        return (source,)
    if isinstance(source, tuple | list) and len(source) == 2 and all(map(is_map_style, source)):
        return tuple(source)
    return ()


def open_map_style(
    parts: tuple[Any, ...],
    name: str | None,
    size: tuple[int, int] | None,
    filter: Filter = "box",
    fit: Fit = "squash",
) -> Dataset:
    """A training part, and one to test on if there is a second, of items (PIL image, tensor or array, label), or
    dictionaries with the keys image and label, as Hugging Face's `datasets` gives them.

    Every item is read once, in order, with its transform. Grey PIL images stay grey, others become RGB (see
    `eight_bits`). The names of the classes are those in `classes`, which datasets of torchvision have. size, filter,
    fit: what images are brought to, see `fastdm.data.decode.decode_file`.
    """
    name = name or _name(parts[0])
    names = [_classes(part) for part in parts]
    if len(parts) == 2:
        _check_same(name, "training", names[0], "test", names[1])
    tally = Tally()
    resizing = None if size is None else (size, filter, fit)
    try:
        splits = [
            _read(part, f"data set {name}, {which} part", resizing, tally)
            for part, which in zip(parts, ("training", "test"), strict=False)
        ]
    finally:
        tally.report(f"data set {name}")
    return make_dataset(name, splits[0], splits[1] if len(splits) == 2 else None, names[0])


def _read(part: Any, where: str, resizing: Resizing | None, tally: Tally) -> Split:
    if isinstance(part, IterableDataset) or not isinstance(part, Sized):
        raise FastDMError(f"{where}: {type(part).__name__} cannot be read by number; it must be a map-style dataset")
    try:
        count = len(part)
    except Exception as error:  # whatever the user's code raises
        raise FastDMError(f"{where}: its length is not known ({type(error).__name__}: {error})") from error
    if count == 0:
        raise FastDMError(f"{where}: there is no image")
    images, shape = torch.empty(0), None
    labels = []
    for number in range(count):
        item = f"{where}, item {number}"
        picture, label = _item(part, number, item)
        pixels = _pixels(picture, item, tally)
        if resizing is not None and pixels.shape[1:] != resizing[0]:
            pixels = resize(pixels, *resizing)
        if shape is None:
            shape = pixels.shape
            images = empty_images(count, shape, "a smaller image_size, or a packed file (fastdm pack), needs less")
            rows = images.numpy()
        if pixels.shape != shape:
            first, this = ("x".join(map(str, each)) for each in (shape, pixels.shape))
            raise FastDMError(
                f"{item} is {this}, but the first is {first}; bring all to one shape with image_size= or a transform"
            )
        rows[number] = pixels
        labels.append(label)
    return images, torch.tensor(labels)


def _item(part: Any, number: int, item: str) -> tuple[Any, int]:
    try:
        values = part[number]
    except Exception as error:  # whatever the user's code raises
        if is_exhausted(error):
            raise
        raise FastDMError(f"{item} cannot be read: {type(error).__name__}: {error}") from error
    if isinstance(values, Mapping):
        picture, label = (_named(values, names, item) for names in (_IMAGE_KEYS, _LABEL_KEYS))
    elif isinstance(values, tuple | list) and len(values) >= 2:
        picture, label = values[:2]
    else:
        raise FastDMError(f"{item} is a {type(values).__name__}; it must be (image, label)")
    if isinstance(label, Tensor | np.ndarray) and np.prod(label.shape) == 1:
        label = label.item()
    try:
        return picture, whole_number("its label", label, 0)
    except FastDMError as error:
        raise FastDMError(f"{item}: {error}") from error


def _named(values: Mapping[Any, Any], names: tuple[str, ...], item: str) -> Any:
    """The value of the first of these keys that a dictionary has."""
    for name in names:
        if name in values:
            return values[name]
    keys = ", ".join(str(key)[:40] for key in list(values)[:10])
    raise FastDMError(
        f"{item} is a dictionary of {keys or 'nothing'}; it must be (image, label), or have the keys image and label"
    )


def _pixels(picture: object, item: str, tally: Tally) -> Pixels:
    """uint8 [C, H, W]."""
    if isinstance(picture, Image.Image):
        try:
            levels = np.asarray(eight_bits(picture, tally, item))
        except OSError as error:
            raise FastDMError(f"{item}: {error}") from error
        return levels[None] if levels.ndim == 2 else levels.transpose(2, 0, 1)
    if not isinstance(picture, Tensor | np.ndarray):
        raise FastDMError(f"{item} has a {type(picture).__name__} for an image; it must be a PIL image or a tensor")
    if isinstance(picture, Tensor) and picture.is_floating_point() and ((picture < 0) | (picture > 1)).any():
        raise FastDMError(
            f"{item} has pixels of {float(picture.min()):g}..{float(picture.max()):g}; they must lie in [0, 1]: take "
            "Normalize out of the transform, fastdm normalises by itself"
        )
    if picture.ndim not in (2, 3):
        raise FastDMError(f"{item} is an image of shape {list(picture.shape)}; it must be [C, H, W] or [H, W]")
    pixels: Pixels = as_images(item.removeprefix("data set "), picture[None]).numpy()[0]
    return pixels


def _name(part: Any) -> str:
    """The name of its folder where it has class folders, else of its class, such as CIFAR10."""
    *_, innermost = _layers(part)
    if hasattr(innermost, "class_to_idx") and hasattr(innermost, "samples") and hasattr(innermost, "root"):
        return folder_name(Path(innermost.root))
    return type(innermost).__name__


def _classes(part: Any) -> list[str] | None:
    """The names that a dataset has itself, which labels of its own go by, or else those of what it is made from."""
    for layer in _layers(part):
        if names := _own_names(layer):
            return names
        several = getattr(layer, "datasets", None)
        known = [_classes(each) for each in several] if isinstance(several, list | tuple) else []
        for other in known[1:]:
            _check_same(type(layer).__name__, "first", known[0], "next", other)
    return None


def _own_names(layer: Any) -> list[str]:
    classes = getattr(layer, "classes", None)
    if classes is None and isinstance(features := getattr(layer, "features", None), Mapping):
        label = next((features[name] for name in _LABEL_KEYS if name in features), None)  # the one that `_item` takes
        classes = getattr(label, "names", None)
    if isinstance(classes, str) or not isinstance(classes, Iterable) or not isinstance(classes, Sized):
        return []
    return [str(each) for each in classes]


def _layers(part: Any) -> Iterator[Any]:
    """The dataset and, one within the other, what a Subset or a ConcatDataset is made from (of several, the first)."""
    for _ in range(10):
        yield part
        inner = getattr(part, "dataset", None)
        if inner is None and isinstance(several := getattr(part, "datasets", None), list | tuple) and several:
            inner = several[0]
        if not is_map_style(inner):
            break
        part = inner


def _check_same(name: str, one: str, names: list[str] | None, other: str, others: list[str] | None) -> None:
    if names is not None and others is not None and names != others:
        raise FastDMError(
            f"data set {name}: the {one} part has the classes {_listed(names)}, the {other} part {_listed(others)}; "
            "they must be the same, since labels are numbers among them"
        )


def _listed(names: list[str]) -> str:
    return f"{', '.join(names[:5])}{', …' if len(names) > 5 else ''} ({len(names)})"
