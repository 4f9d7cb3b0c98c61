"""Open a data set, whatever form it comes in, as class-sorted uint8 pools."""

import importlib.util
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from PIL import Image
from torch import Tensor

from fastdm.data.folders import find_images, folder_name
from fastdm.data.pool import Dataset, Pool
from fastdm.errors import FastDMError, unknown

if TYPE_CHECKING:
    from fastdm.data.packed import IO

Source = str | os.PathLike[str] | Sequence[ArrayLike | Tensor] | Dataset
_Split = tuple[Tensor, Tensor]  # images uint8 [N, C, H, W] and labels int64 [N]

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_NORMALISATION = {
    "MNIST": ((0.1307,), (0.3081,)),
    "FashionMNIST": ((0.2861,), (0.3530,)),
    "SVHN": ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
    "CIFAR10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "CIFAR100": ((0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762)),
}
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
_NAMES = (*_TORCHVISION_FILES, "TinyImageNet", "digits")
_DIGITS_TEST = 36  # test images of each digit: a fifth


def open_dataset(
    source: Source,
    *,
    data_path: str | os.PathLike[str] = "data",
    name: str | None = None,
    image_size: int | tuple[int, int] | None = None,
    io: "IO" = "auto",
) -> Dataset:
    """Open a data set as class-sorted uint8 pools; inside a class the images keep their order.

    source is one of

    - ``"MNIST"``, ``"FashionMNIST"``, ``"SVHN"``, ``"CIFAR10"``, ``"CIFAR100"``: torchvision's, under ``data_path``,
      downloaded if absent;
    - ``"TinyImageNet"``: ``data_path/tiny-imagenet-200/`` as distributed, else the public code's
      ``data_path/tinyimagenet.pt``;
    - ``"digits"``: scikit-learn's bundled 8×8 digits, 0..16 scaled to 0..255. 36 images of each digit, chosen by
      ``Pool.draw`` with seed and step 0, are the test part;
    - the path of a folder of image files, laid out in one of the ways of ``fastdm.data.folders.find_images`` (class
      folders, Tiny-ImageNet, ImageNet); they are decoded to RGB. A large set is better packed once (``fastdm.pack``);
    - the path of an ``.npz`` file with x_train, y_train and, for a test part, x_test, y_test;
    - the path of a ``.pt`` file like tinyimagenet.pt: a dict of classes, images_train, labels_train, images_val,
      labels_val;
    - the path of a packed file (``fastdm.pack``);
    - ``(images, labels)`` or ``(images, labels, test_images, test_labels)``, arrays or tensors;
    - a ``Dataset``, which is returned as it is.

    Arrays of images are [N, H, W], [N, H, W, C] or [N, C, H, W] with C 1 or 3, uint8 or floating-point in [0, 1]
    (rounded to 1/255). Labels are integers 0..classes − 1, every class having at least one training image.

    name: what the data set is called, by default as its file or folder. Mean and standard deviation are the customary
    ones for the names above and for ImageNet's relatives (a name with "imagenet" in it), else those of the train part.
    image_size: for folders of image files, the side or (height, width) that every image is squashed to with a box
    filter; without it all images must be of one size.
    io: where the images of a packed file are kept: "auto", "mmap", "ram", "device" or "direct", see
    ``fastdm.data.packed.open_packed``.

    Raises FastDMError for whatever cannot be used, naming it.
    """
    if isinstance(source, Dataset):
        return source
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    if not isinstance(source, str | os.PathLike):
        _refuse_image_size(size, "arrays")
        return _from_arrays(source, name or "arrays")
    data_path = Path(data_path)
    source = _canonical(source)
    if source == "TinyImageNet":
        return _open_path(_find_tiny_imagenet(data_path), name or "TinyImageNet", size, io)
    if source in _NAMES:
        _refuse_image_size(size, str(source))
        return _digits(name or "digits") if source == "digits" else _torchvision(str(source), data_path, name)
    path = Path(source)
    if not path.exists():
        if path.name == str(source) and not path.suffix:
            raise FastDMError(f"{unknown('data set', str(source), _NAMES)} (there is no file or folder of that name)")
        raise FastDMError(f"unknown data set {str(source)!r}: there is no such file or folder")
    return _open_path(path, name or (folder_name(path) if path.is_dir() else path.stem), size, io)


def _canonical(source: str | os.PathLike[str]) -> str | os.PathLike[str]:
    """A known data set's name however it is spelled, unless there is a file or folder of that name."""
    spelled = {name.lower(): name for name in _NAMES}
    return source if os.path.exists(source) else spelled.get(str(source).lower(), source)


def _open_path(path: Path, name: str, size: tuple[int, int] | None, io: "IO") -> Dataset:
    try:
        if path.is_dir():
            return _open_folder(path, name, size)
        _refuse_image_size(size, str(path))
        if path.suffix.lower() == ".npz":
            return _npz(path, name)
        if path.suffix.lower() == ".pt":
            return _tiny_imagenet_pt(path, name)
        from fastdm.data.packed import open_packed

        return open_packed(path, io)
    except OSError as error:
        raise FastDMError(f"{path} cannot be read: {error.strerror or error}") from error


def _refuse_image_size(size: tuple[int, int] | None, source: str) -> None:
    if size is not None:
        raise FastDMError(f"image_size is for folders of image files: the images of {source} keep their size")


# --- from arrays to a Dataset ----------------------------------------------------------------------------------------


def _dataset(name: str, train: _Split, test: _Split | None, class_names: Sequence[str] | None = None) -> Dataset:
    """Sort both parts by class; ``class_names`` by default the numbers of the labels."""
    images, labels = train
    if len(images) == 0:
        raise FastDMError(f"data set {name}: there is no training image")
    classes = len(class_names) if class_names is not None else int(labels.max()) + 1
    if classes > len(images):  # said before anything of that size is made
        raise FastDMError(
            f"data set {name}: {len(images)} training images cannot belong to {classes} classes; labels must be "
            f"0..{classes - 1} without gaps"
        )
    pool = _pool(name, "train", images, labels, classes)
    empty = (pool.class_sizes == 0).nonzero().flatten().tolist()
    if empty:
        listed = ", ".join(str(label) if class_names is None else repr(class_names[label]) for label in empty[:5])
        raise FastDMError(
            f"data set {name}: no training image of class {listed}{', …' if len(empty) > 5 else ''}; labels must be "
            f"0..{classes - 1} without gaps"
        )
    test_pool = None
    if test is not None:
        test_pool = _pool(name, "test", *test, classes)
        if test_pool.images.shape[1:] != pool.images.shape[1:]:
            raise FastDMError(
                f"data set {name}: test images are {_shape_text(test_pool.images)}, training images "
                f"{_shape_text(pool.images)}; they must be of one shape"
            )
    names = tuple(class_names) if class_names is not None else tuple(map(str, range(classes)))
    mean, std = normalisation(name, pool.images)
    return Dataset(name, pool, test_pool, names, mean, std)


def _pool(name: str, part: str, images: Tensor, labels: Tensor, classes: int) -> Pool:
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


def customary_normalisation(name: str, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and std per channel that everybody uses for the data set called ``name``, if there are such."""
    preset = _IMAGENET if "imagenet" in name.lower() else _NORMALISATION.get(name)
    return preset if preset and len(preset[0]) == channels else None


def normalisation(name: str, images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The customary mean and std per channel, else those of the pixels / 255."""
    channels = images.shape[1]
    if preset := customary_normalisation(name, channels):
        return preset
    counts = torch.zeros(channels, 256, dtype=torch.int64)
    for chunk in torch.split(images, 4096):  # keeps the copies small
        for channel in range(channels):
            counts[channel] += torch.bincount(chunk[:, channel].flatten(), minlength=256)
    weights = counts.double() / counts.sum(1, keepdim=True)
    values = torch.arange(256, dtype=torch.float64) / 255
    mean = (weights * values).sum(1)
    std = (weights * (values - mean[:, None]).square()).sum(1).sqrt()
    std[std == 0] = 1  # a channel of one value
    return tuple(mean.tolist()), tuple(std.tolist())


def _images(name: str, array: ArrayLike | Tensor) -> Tensor:
    """Uint8 [N, C, H, W] of any array of images that ``open_dataset`` describes."""
    images = _tensor(name, "images", array)
    if images.ndim == 3:
        images = images[:, None]
    elif images.ndim == 4 and images.shape[1] not in (1, 3):
        images = images.permute(0, 3, 1, 2)
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise FastDMError(
            f"data set {name}: images of shape {tuple(_tensor(name, 'images', array).shape)}; they must be [N, H, W], "
            "[N, H, W, C] or [N, C, H, W] with 1 or 3 channels"
        )
    if images.dtype == torch.uint8:
        return images
    if not images.is_floating_point():
        raise FastDMError(f"data set {name}: pixels are {images.dtype}; they must be uint8 or floating-point in [0, 1]")
    bytes_ = torch.empty(images.shape, dtype=torch.uint8)
    for start in range(0, len(images), 4096):
        chunk = images[start : start + 4096]
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


def _labels(name: str, array: ArrayLike | Tensor) -> Tensor:
    labels = _tensor(name, "labels", array)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise FastDMError(
            f"data set {name}: labels must be integers of shape [N], not {labels.dtype} {list(labels.shape)}"
        )
    return labels.long()


def _tensor(name: str, what: str, array: ArrayLike | Tensor) -> Tensor:
    if isinstance(array, Tensor):
        return array.detach().cpu()
    try:
        return torch.from_numpy(np.require(array, requirements=["C", "W"]))
    except (TypeError, ValueError) as error:  # ragged lists, strings, objects
        raise FastDMError(f"data set {name}: its {what} are no array of numbers of one shape ({error})") from error


def _from_arrays(arrays: Sequence[ArrayLike | Tensor], name: str) -> Dataset:
    if not isinstance(arrays, tuple | list) or len(arrays) not in (2, 4):
        raise FastDMError(
            "a data set of arrays is (images, labels) or (images, labels, test_images, test_labels), not "
            f"{type(arrays).__name__}{f' of {len(arrays)}' if isinstance(arrays, tuple | list) else ''}"
        )
    splits = [(_images(name, arrays[i]), _labels(name, arrays[i + 1])) for i in range(0, len(arrays), 2)]
    return _dataset(name, splits[0], splits[1] if len(splits) == 2 else None)


# --- files -----------------------------------------------------------------------------------------------------------


def _npz(path: Path, name: str) -> Dataset:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in ("x_train", "y_train", "x_test", "y_test") if key in file}
    except Exception as error:  # numpy, zipfile and zlib raise each their own
        raise FastDMError(f"{path} is not a readable .npz file: {error}") from error
    if set(arrays) not in ({"x_train", "y_train"}, {"x_train", "y_train", "x_test", "y_test"}):
        raise FastDMError(f"{path} must hold x_train and y_train, and for a test part both x_test and y_test")
    return _from_arrays(list(arrays.values()), name)


def _tiny_imagenet_pt(path: Path, name: str) -> Dataset:
    keys = ("classes", "images_train", "labels_train", "images_val", "labels_val")
    try:
        data = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch.load raises many kinds for what is no file of its own
        raise FastDMError(f"{path} is not a readable .pt file: {error}") from error
    if not isinstance(data, dict) or not data.keys() >= set(keys):
        raise FastDMError(f"{path} is no data set: a .pt file must hold a dict of {', '.join(keys)}")
    train, test = (
        (_images(name, data[f"images_{part}"]), _labels(name, data[f"labels_{part}"])) for part in ("train", "val")
    )
    return _dataset(name, train, test, [str(label) for label in data["classes"]])


def _find_tiny_imagenet(data_path: Path) -> Path:
    candidates = [data_path / "tiny-imagenet-200", data_path / "tinyimagenet.pt"]
    for path in candidates:
        if path.exists():
            return path
    raise FastDMError(f"TinyImageNet is not there: put the folder {candidates[0]} or the file {candidates[1]} in place")


def _torchvision(source: str, data_path: Path, name: str | None) -> Dataset:
    if source == "SVHN" and importlib.util.find_spec("scipy") is None:
        raise FastDMError("SVHN comes in MATLAB files, which scipy reads: pip install scipy")
    from torchvision import datasets

    kind = getattr(datasets, source)
    parts = [{"split": "train"}, {"split": "test"}] if source == "SVHN" else [{"train": True}, {"train": False}]

    def load(**options: Any) -> Any:
        try:
            return kind(data_path, download=False, **options)
        except RuntimeError:  # not found, or corrupted
            return kind(data_path, download=True, **options)

    try:
        train, test = (load(**part) for part in parts)
    except Exception as error:  # torchvision passes on those of urllib, tarfile, pickle, scipy, …
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise FastDMError(
            f"{source} is not in {data_path} as its makers distribute it, and downloading it failed ({reason}); put "
            f"{_TORCHVISION_FILES[source]} into {data_path}"
        ) from error

    def split(part: Any) -> _Split:
        return _images(source, part.data), _labels(source, part.labels if source == "SVHN" else part.targets)

    class_names = [str(digit) for digit in range(10)] if source == "SVHN" else train.classes
    return _dataset(name or source, split(train), split(test), class_names)


def _digits(name: str) -> Dataset:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise FastDMError("the data set digits comes with scikit-learn: pip install scikit-learn") from error

    bunch = load_digits()
    images = torch.from_numpy(bunch.images * (255 / 16)).round().to(torch.uint8)[:, None]
    pool = _pool(name, "train", images, torch.from_numpy(bunch.target).long(), 10)
    is_test = torch.zeros(len(pool), dtype=torch.bool)
    is_test[pool.draw(0, 0, _DIGITS_TEST).flatten()] = True
    train, test = ((pool.images[part], pool.labels[part]) for part in (~is_test, is_test))
    return _dataset(name, train, test, [str(digit) for digit in range(10)])


# --- folders of image files ------------------------------------------------------------------------------------------


def _open_folder(root: Path, name: str, size: tuple[int, int] | None) -> Dataset:
    folders = find_images(root)
    class_names = list(folders.class_names)
    train = _decode(folders.train, class_names, size)
    test = None if folders.test is None else _decode(folders.test, class_names, size)
    return _dataset(name, train, test, class_names)


def _decode(files: dict[str, list[Path]], class_names: list[str], size: tuple[int, int] | None) -> _Split:
    """Decode all files on all cores; without ``size`` they must have the size of the first."""
    paths = [path for label in class_names for path in files.get(label, [])]
    counts = torch.tensor([len(files.get(label, [])) for label in class_names])
    width, height = size[::-1] if size else _rgb(paths[0]).size
    images = torch.empty(len(paths), 3, height, width, dtype=torch.uint8)
    rows = images.numpy()

    def decode(row: int) -> None:
        image = _rgb(paths[row])
        if image.size != (width, height):
            if size is None:
                raise FastDMError(
                    f"images differ in size: {paths[0]} is {height}x{width}, {paths[row]} is "
                    f"{image.height}x{image.width}; give image_size= to bring all to one size"
                )
            image = image.resize((width, height), Image.Resampling.BOX)
        rows[row] = np.asarray(image).transpose(2, 0, 1)

    with ThreadPoolExecutor() as threads:
        for _ in threads.map(decode, range(len(paths))):
            pass
    return images, torch.repeat_interleave(torch.arange(len(class_names)), counts)


def _rgb(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise FastDMError(f"{path} is no readable image: {error}") from error
