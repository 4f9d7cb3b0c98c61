"""Open a data set, whatever form it comes in, as class-sorted uint8 pools."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch.utils.data
from numpy.typing import ArrayLike
from torch import Tensor

from fastdm.data.arrays import from_arrays, open_npz, open_pt
from fastdm.data.folders import folder_name
from fastdm.data.image_files import open_folder
from fastdm.data.map_style import is_map_style, open_map_style, parts_of
from fastdm.data.named import NAMES, find_tiny_imagenet, open_digits, open_torchvision
from fastdm.data.packed.reading import IO, open_packed
from fastdm.data.pool import Dataset
from fastdm.errors import FastDMError, unknown, whole_number
from fastdm.system.device import undisturbed
from fastdm.system.files import user_path
from fastdm.system.memory import is_exhausted, within_memory

Source = (
    str
    | os.PathLike[str]
    | Sequence[ArrayLike | Tensor]
    | torch.utils.data.Dataset[Any]
    | tuple[torch.utils.data.Dataset[Any], torch.utils.data.Dataset[Any]]
    | Dataset
)


@within_memory("open a packed file (fastdm pack), whose images stay on disk, or bring images to a smaller image_size")
@undisturbed()
def open_dataset(
    source: Source,
    *,
    data_path: str | os.PathLike[str] = "data",
    name: str | None = None,
    image_size: int | tuple[int, int] | None = None,
    io: IO = "auto",
) -> Dataset:
    """Open a data set as class-sorted uint8 pools; inside a class the images keep their order.

    source is one of

    - `"MNIST"`, `"FashionMNIST"`, `"SVHN"`, `"CIFAR10"`, `"CIFAR100"`: torchvision's, under `data_path`,
      downloaded if absent;
    - `"TinyImageNet"`: `data_path/tiny-imagenet-200/` as distributed, else the public code's
      `data_path/tinyimagenet.pt`;
    - `"digits"`: scikit-learn's bundled 8×8 digits, 0..16 scaled to 0..255. 36 images of each digit, chosen by
      `Pool.draw` with seed and step 0, are the test part;
    - the path of a folder of image files, laid out in one of the ways of `fastdm.data.folders.find_images` (class
      folders, Tiny-ImageNet, ImageNet); they are decoded to RGB. A large set is better packed once (`fastdm.pack`);
    - the path of an `.npz` file with x_train, y_train and, for a test part, x_test, y_test; or MedMNIST's train_images,
      train_labels, test_images, test_labels;
    - the path of a `.pt` file like tinyimagenet.pt: a dict of classes, images_train, labels_train and, for a test part,
      images_val, labels_val; or `(images, labels)` with or without those of a test part;
    - the path of a packed file (`fastdm.pack`);
    - `(images, labels)` or `(images, labels, test_images, test_labels)`, arrays or tensors;
    - a map-style dataset of PyTorch, whose items are (PIL image or tensor, label), or a pair (train, test) of them:
      torchvision's, a `TensorDataset`, one of Hugging Face's `datasets` (items with the keys image and label), your
      own. Leave Normalize and random augmentation out of its transform: every item is read once;
    - a `Dataset`, which is returned as it is.

    Arrays of images are [N, H, W], [N, H, W, C] or [N, C, H, W] with C 1 or 3 (channels come first where both fit),
    uint8 or floating-point in [0, 1] (rounded to 1/255). Labels are integers 0..classes − 1, every class having at
    least one training image.

    name: what the data set is called, by default as its file or folder. Mean and standard deviation are the standard
    ones for the names above and for ImageNet's relatives (a name with "imagenet" in it), else those of the train part.
    image_size: for folders of image files and for datasets of PyTorch, the side or (height, width) that every image is
    squashed to with a box filter; without it all images must be of one size.
    io: where the images of a packed file are kept: "auto", "mmap", "ram", "device" or "direct", see
    `fastdm.data.packed.reading.open_packed`.

    What is left out or converted, such as files that are not images, is counted and named in one warning of the logger
    "fastdm". Raises FastDMError for whatever cannot be used, naming it.

    >>> import fastdm
    >>> digits = fastdm.open_dataset("digits")
    >>> digits.num_classes, digits.image_shape, len(digits.train), len(digits.test)
    (10, (1, 8, 8), 1437, 360)
    """
    if isinstance(source, Dataset):
        return source
    size = _size(image_size)
    if parts := parts_of(source):
        return open_map_style(parts, name, size)
    if isinstance(source, tuple | list) and any(map(is_map_style, source)):
        raise FastDMError(
            f"{len(source)} objects, some of them datasets of PyTorch, are not a data set; give one dataset, or a pair "
            "of them (train, test)"
        )
    if not isinstance(source, str | os.PathLike):
        _refuse_image_size(size, "arrays")
        return from_arrays(source, name or "arrays")  # type: ignore[arg-type]  # `parts_of` has taken the datasets
    if not str(source):
        raise FastDMError("the name of the data set is empty; give a name or a path")
    data_path = user_path(data_path)
    source = _canonical(source)
    if source == "TinyImageNet":
        return _open_path(find_tiny_imagenet(data_path), name or "TinyImageNet", size, io)
    if source in NAMES:
        _refuse_image_size(size, str(source))
        return open_digits(name or "digits") if source == "digits" else open_torchvision(str(source), data_path, name)
    path = user_path(source)
    if not _exists(path):
        if path.name == str(source) and not path.suffix:
            raise FastDMError(f"{unknown('data set', str(source), NAMES)} (there is no file or folder of that name)")
        raise FastDMError(f"unknown data set {str(source)!r}: there is no such file or folder")
    return _open_path(path, name or (folder_name(path) if path.is_dir() else path.stem), size, io)


_ARCHIVES = (".7z", ".bz2", ".gz", ".rar", ".tar", ".tgz", ".xz", ".zip")


def _size(image_size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    if image_size is None:
        return None
    sides = tuple(image_size) if isinstance(image_size, tuple | list) else (image_size, image_size)
    if len(sides) != 2:
        raise FastDMError(f"image_size is {image_size!r}; it must be a side, or (height, width)")
    height, width = (whole_number("image_size", side, 1) for side in sides)
    return height, width


def _exists(path: str | os.PathLike[str]) -> bool:
    try:
        return os.path.exists(path)
    except ValueError:  # a zero byte in its name
        return False


def _canonical(source: str | os.PathLike[str]) -> str | os.PathLike[str]:
    """A known data set's name however it is spelled, unless there is a file or folder of that name."""
    spelled = {name.lower(): name for name in NAMES}
    return source if _exists(source) else spelled.get(str(source).lower(), source)


def _open_path(path: Path, name: str, size: tuple[int, int] | None, io: IO) -> Dataset:
    try:
        if path.is_dir():
            return open_folder(path, name, size)
        _refuse_image_size(size, str(path))
        if path.suffix.lower() in _ARCHIVES:
            raise FastDMError(f"{path} is an archive; unpack it, and name the folder")
        if path.suffix.lower() == ".npz":
            return open_npz(path, name)
        if path.suffix.lower() in (".pt", ".pth"):
            return open_pt(path, name)
        return open_packed(path, io)
    except OSError as error:
        if is_exhausted(error):
            raise
        raise FastDMError(f"{error.filename or path} cannot be read: {error.strerror or error}") from error


def _refuse_image_size(size: tuple[int, int] | None, source: str) -> None:
    if size is not None:
        raise FastDMError(f"image_size is for folders of image files: the images of {source} keep their size")
