"""A data set kept as folders of image files: which class, which part, in which order; and reading it."""

import csv
import os
import unicodedata
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from fastdm.data.arrays import Split, make_dataset
from fastdm.data.decode import Pixels, decode_file
from fastdm.data.pool import Dataset
from fastdm.errors import FastDMError

IMAGE_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".pnm", ".tif", ".tiff"))
_IMAGENET_DEVKIT = Path("ILSVRC2012_devkit_t12", "data")

FilesByClass = dict[str, list[Path]]


@dataclass(frozen=True)
class ImageFolders:
    """Image files by class, classes and files sorted by name; every class of `test` is one of `train`."""

    train: FilesByClass
    test: FilesByClass | None

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(self.train)


def find_images(root: Path) -> ImageFolders:
    """The image files below `root`, which is laid out in one of these ways.

    - class folders directly (no test part), or below `train/` and `val/`, `valid/` or `test/`; a class folder
      may hold folders itself;
    - Tiny-ImageNet: `val/images/` and `val/val_annotations.txt`;
    - ImageNet: `val/*.JPEG` and, next to `val` or above it, `LOC_val_solution.csv` or
      `ILSVRC2012_devkit_t12/`; Kaggle's `ILSVRC/Data/CLS-LOC/` is looked into.

    Raises FastDMError for a folder without classes, a class without images, two classes of one name (two spellings of
    the same Unicode text), a loop of symbolic links, and a test part that cannot be assigned to the classes.
    """
    kaggle = root / "ILSVRC" / "Data" / "CLS-LOC"
    base = kaggle if kaggle.is_dir() else root
    if not (base / "train").is_dir():
        return ImageFolders(_class_folders(base), None)
    train = _class_folders(base / "train")
    test = _test_part(base, root)
    if test is not None and (unknown := sorted(test.keys() - train.keys())):
        raise FastDMError(f"{base}: class {unknown[0]!r} of the test part has no training images")
    return ImageFolders(train, test)


def folder_name(root: Path) -> str:
    """What a data set in a folder is called: as the folder, of a lone `train/` as what that lies in."""
    root = root.resolve()
    return root.parent.name if root.name == "train" and root.parent.name else root.name


def _test_part(base: Path, root: Path) -> FilesByClass | None:
    folder = next((base / part for part in ("val", "valid", "test") if (base / part).is_dir()), None)
    if folder is None:
        return None
    annotations = folder / "val_annotations.txt"
    if annotations.is_file():
        return _grouped(annotations, _tiny_labels(annotations, folder))
    if any(entry.is_dir() for entry in folder.iterdir()):
        return _class_folders(folder)
    for place in (folder, base, *base.resolve().parents[:3], root):
        if (table := place / "LOC_val_solution.csv").is_file():
            return _grouped(table, _kaggle_labels(table, folder))
        if (devkit := place / _IMAGENET_DEVKIT).is_dir():
            return _grouped(devkit, _devkit_labels(devkit, folder))
    raise FastDMError(
        f"{folder} has no class folders and no list of labels: put val_annotations.txt (Tiny-ImageNet), "
        "LOC_val_solution.csv or ILSVRC2012_devkit_t12/ (ImageNet) next to it"
    )


def _tiny_labels(table: Path, folder: Path) -> Iterator[tuple[str, Path]]:
    for line in table.read_text().splitlines():
        file, label = line.split("\t")[:2]
        yield label, folder / "images" / file


def _kaggle_labels(table: Path, folder: Path) -> Iterator[tuple[str, Path]]:
    with table.open(newline="") as file:
        for row in csv.DictReader(file):
            yield row["PredictionString"].split()[0], folder / f"{row['ImageId']}.JPEG"


def _devkit_labels(devkit: Path, folder: Path) -> Iterator[tuple[str, Path]]:
    try:
        from scipy.io import loadmat  # type: ignore[import-untyped]
    except ImportError as error:
        raise FastDMError(
            f"{devkit}/meta.mat needs scipy to be read (pip install scipy); LOC_val_solution.csv does without"
        ) from error
    with (devkit / "meta.mat").open("rb") as file:
        synsets = loadmat(file, squeeze_me=True)["synsets"]
    names = {int(synset[0]): str(synset[1]) for synset in synsets}
    numbers = (devkit / "ILSVRC2012_validation_ground_truth.txt").read_text().split()
    for i, number in enumerate(numbers, start=1):
        yield names[int(number)], folder / f"ILSVRC2012_val_{i:08d}.JPEG"


def _grouped(source: Path, labelled: Iterator[tuple[str, Path]]) -> FilesByClass:
    files: FilesByClass = {}
    try:
        for label, path in labelled:
            files.setdefault(label, []).append(path)
    except (FastDMError, OSError):
        raise
    except Exception as error:  # csv and scipy raise each their own
        raise FastDMError(
            f"{source} is not a list of labels in the form in which it was published ({error!r})"
        ) from error
    return {label: sorted(files[label]) for label in sorted(files)}


def _class_folders(root: Path) -> FilesByClass:
    folders = [entry for entry in sorted(root.iterdir()) if entry.is_dir() and not _is_foreign(entry.name)]
    if not folders:
        raise FastDMError(f"{root} holds no class folders; it must hold one folder of images for each class")
    files: FilesByClass = {}
    for folder in folders:
        name = unicodedata.normalize("NFC", folder.name)
        if name in files:
            raise FastDMError(f"{root} holds two classes of the name {name!r}; rename or merge one of the folders")
        files[name] = sorted(_images_below(folder, frozenset()))
        if not files[name]:
            raise FastDMError(f"{folder}: no image of this class")
    return files


def _images_below(folder: Path, ancestors: frozenset[tuple[int, int]]) -> Iterator[Path]:
    status = folder.stat()
    identity = (status.st_dev, status.st_ino)
    if identity in ancestors:
        raise FastDMError(f"{folder} is a symbolic link to a folder that it stands in; remove the loop")
    with os.scandir(folder) as entries:
        for entry in entries:
            path = Path(entry.path)
            if entry.is_dir():
                yield from _images_below(path, ancestors | {identity})
            elif path.suffix.lower() in IMAGE_SUFFIXES and not _is_foreign(path.name):
                yield path


def _is_foreign(name: str) -> bool:
    """Whether a file or folder is the system's and no part of the data set, such as `._a.png` and `__MACOSX`."""
    return name.startswith((".", "__"))


def open_folder(root: Path, name: str, size: tuple[int, int] | None) -> Dataset:
    """The images below `root` (see `find_images`) as a data set; without `size` they must all be of one size."""
    folders = find_images(root)
    class_names = list(folders.class_names)
    train = _decode_all(folders.train, class_names, size)
    test = None if folders.test is None else _decode_all(folders.test, class_names, size)
    return make_dataset(name, train, test, class_names)


def _decode_all(files: FilesByClass, class_names: list[str], size: tuple[int, int] | None) -> Split:
    """Decode all files on all cores."""
    paths = [path for label in class_names for path in files.get(label, [])]
    counts = torch.tensor([len(files.get(label, [])) for label in class_names])
    shape = (3, *size) if size else _decode(paths[0], None).shape
    images = torch.empty(len(paths), *shape, dtype=torch.uint8)
    rows = images.numpy()

    def decode(row: int) -> None:
        pixels = _decode(paths[row], size)
        if pixels.shape != shape:
            first, this = (f"{height}x{width}" for _, height, width in (shape, pixels.shape))
            raise FastDMError(
                f"images differ in size: {paths[0]} is {first}, {paths[row]} is {this}; give image_size= to bring all "
                "to one size"
            )
        rows[row] = pixels

    with ThreadPoolExecutor() as threads:
        for _ in threads.map(decode, range(len(paths))):
            pass
    return images, torch.repeat_interleave(torch.arange(len(class_names)), counts)


def _decode(path: Path, size: tuple[int, int] | None) -> Pixels:
    try:
        return decode_file(path, size)
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise many kinds
        raise FastDMError(f"{path} is not a readable image: {error}") from error
