"""A data set kept as folders of image files: which class, which part, in which order."""

import os
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fastdm.data.decode import is_image, suffixes
from fastdm.data.label_lists import WANTED, FilesByClass, imagenet, tiny_imagenet
from fastdm.errors import FastDMError
from fastdm.system.notes import Tally

DEEPEST = 32
"""Folders within folders of a class that are looked into."""

# Usual names of the parts, in lower case and without the marks between words; in the order of preference.
_TRAIN = ("train", "training", "trainset", "trainingset", "traindata", "trainingdata", "segtrain")
_HELD_OUT = (
    *("val", "valid", "validation", "valset", "validset", "validationset", "valdata", "validationdata", "segval"),
    *("test", "testing", "testset", "testingset", "testdata", "testingdata", "segtest"),
)
_SYSTEM = frozenset(("@eadir", "#recycle", "$recycle.bin", "lost+found", "system volume information"))
_FOREIGN = "hidden and system files and folders skipped"


@dataclass(frozen=True)
class ImageFolders:
    """Image files by class, classes and files sorted by name; every class of `test` is one of `train`."""

    train: FilesByClass
    test: FilesByClass | None

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(self.train)


def find_images(root: Path, tally: Tally | None = None) -> ImageFolders:
    """The image files below `root`, which is laid out in one of these ways.

    - class folders directly (no test part), or below the folder of a training part and that of a part to test on, by
      their usual names: train, Training, seg_train, training_set, …; val, valid, Validation, test, Testing, …, of which
      the validation part is preferred. A class folder may hold folders itself, up to `DEEPEST` levels of them;
    - Tiny-ImageNet: `val/images/` and `val/val_annotations.txt`;
    - ImageNet: `val/*.JPEG` and, next to `val` or above it, `LOC_val_solution.csv` or
      `ILSVRC2012_devkit_t12/`; Kaggle's `ILSVRC/Data/CLS-LOC/` is looked into.

    Images are what Pillow reads, by the suffix, or by the first bytes where a name has none. What is left out (hidden
    and system files, files of other kinds, parts that are not used, a test part without labels) is counted in `tally`;
    without one it is logged. Raises FastDMError for a folder without classes, a class without images, two classes of
    one name (two spellings of the same Unicode text), parts that cannot be told apart, a loop of symbolic links, and a
    test part with other classes.
    """
    counted = Tally() if tally is None else tally
    try:
        return _find(root, counted)
    finally:
        if tally is None:
            counted.report(root)


def folder_name(root: Path) -> str:
    """What a data set in a folder is called: as the folder, of a lone `train/` as what that lies in."""
    root = root.resolve()
    return root.parent.name if _plain(root) in _TRAIN and root.parent.name else root.name


def _find(root: Path, tally: Tally) -> ImageFolders:
    kaggle = root / "ILSVRC" / "Data" / "CLS-LOC"
    base = kaggle if kaggle.is_dir() else root
    folders = _folders(base, tally)
    train_folder, held_out = _parts(base, folders)
    if train_folder is None:
        _note_common_folders(folders, tally)
        return ImageFolders(_class_folders(base, folders, tally), None)
    classes_in = _inner(train_folder)
    train = _class_folders(classes_in, _folders(classes_in, tally), tally)
    for folder in folders:
        if folder != train_folder and folder not in held_out:
            tally.add(f"folders next to {train_folder.name}/ that are not used", folder.name)
    test = None
    for number, folder in enumerate(held_out):
        test = _test_part(_inner(folder), base, root, train, tally)
        if test is not None:
            for other in held_out[number + 1 :]:
                tally.say(f"{other.name}/ is not used, {folder.name}/ is the test part")
            break
    if test is not None and (unknown := sorted(test.keys() - train.keys())):
        raise FastDMError(f"{base}: class {unknown[0]!r} of the test part has no training images")
    return ImageFolders(train, test)


def _parts(base: Path, folders: list[Path]) -> tuple[Path | None, list[Path]]:
    """The folder of the training part, None if `folders` are classes, and those of the others, the preferred first."""
    train = [folder for folder in folders if _plain(folder) in _TRAIN]
    held_out = sorted(
        (folder for folder in folders if _plain(folder) in _HELD_OUT), key=lambda f: (_HELD_OUT.index(_plain(f)), f)
    )
    others = [folder for folder in folders if folder not in train and folder not in held_out]
    if len(train) > 1:
        raise FastDMError(f"{base} holds {train[0].name}/ and {train[1].name}/; one of them must be the training part")
    if not train:
        if held_out and not others:
            raise FastDMError(
                f"{base} holds {', '.join(f'{f.name}/' for f in held_out)}, but no folder of a training part; call it "
                "train/, or name the folder whose folders are the classes"
            )
        return None, []
    if others and not any(entry.is_dir() and not _is_foreign(entry.name) for entry in train[0].iterdir()):
        return None, []  # a class that is called so, among others
    if not held_out and any(_holds_images(folder) for folder in others):
        raise FastDMError(
            f"{base}: {train[0].name}/ may be the training part or, like {others[0].name}/, a class; open {train[0]}, "
            "or rename it"
        )
    return train[0], held_out


def _test_part(folder: Path, base: Path, root: Path, train: FilesByClass, tally: Tally) -> FilesByClass | None:
    if (test := tiny_imagenet(folder, tally)) is not None:
        return test
    inside = _folders(folder, tally)
    # Tiny-ImageNet's test/images, others' test/unknown: one folder, of no class, among several classes.
    if inside and not (len(inside) == 1 < len(train) and _normal(inside[0]) not in train):
        return _class_folders(folder, inside, tally)
    test = imagenet(folder, (folder, base, *base.resolve().parents[:3], root), tally)
    if test is None:
        tally.say(
            f"{folder} has no class folders and no list of labels, and is not used: to test on it, put {WANTED} next "
            "to it"
        )
    return test


def _inner(folder: Path) -> Path:
    """What archives unpack as `seg_train/seg_train/`: the inner one of two folders of one name."""
    entries = [entry for entry in folder.iterdir() if not _is_foreign(entry.name)]
    return entries[0] if len(entries) == 1 and entries[0].is_dir() and _plain(entries[0]) == _plain(folder) else folder


def _note_common_folders(folders: list[Path], tally: Tally) -> None:
    """Say what was assumed where all folders hold the same folders: they may be parts, and those the classes."""
    names = [{entry.name for entry in folder.iterdir() if entry.is_dir()} for folder in folders]
    if len(names) > 1 and len(names[0]) > 1 and all(each == names[0] for each in names):
        tally.say(
            f"the folders {', '.join(folder.name for folder in folders[:3])}, … are taken as classes, though all of "
            f"them hold the same folders ({', '.join(sorted(names[0])[:3])}, …): if those are the classes, open one "
            "of them, or call them train and test"
        )


def _class_folders(root: Path, folders: list[Path], tally: Tally) -> FilesByClass:
    """The images in each of the class folders of `root`."""
    if not folders:
        raise FastDMError(f"{root} holds no class folders; it must hold one folder of images for each class")
    files: FilesByClass = {}
    # By these names: labels must not depend on the file system.
    for name, folder in sorted((_normal(folder), folder) for folder in folders):
        if name in files:
            raise FastDMError(f"{root} holds two classes of the name {name!r}; rename or merge one of the folders")
        files[name] = sorted(_images_below(folder, (), tally))
        if not files[name]:
            raise FastDMError(f"{folder}: no image of this class")
    for entry in root.iterdir():
        if not entry.is_dir() and _suffix_known(entry.name) and not _is_foreign(entry.name):
            tally.add("images outside the class folders left out", entry)
    return files


def _folders(folder: Path, tally: Tally) -> list[Path]:
    found = []
    for entry in sorted(folder.iterdir()):
        if _is_foreign(entry.name):
            tally.add(_FOREIGN, entry)
        elif entry.is_dir():
            found.append(entry)
    return found


def _images_below(folder: Path, ancestors: tuple[tuple[int, int], ...], tally: Tally) -> Iterator[Path]:
    status = folder.stat()
    identity = (status.st_dev, status.st_ino)
    if identity in ancestors:
        raise FastDMError(f"{folder} is a symbolic link to a folder that it stands in; remove the loop")
    if len(ancestors) > DEEPEST:
        raise FastDMError(f"{folder} is more than {DEEPEST} folders below its class folder; move the images up")
    with os.scandir(folder) as entries:
        for entry in entries:
            path = Path(entry.path)
            if _is_foreign(entry.name):
                tally.add(_FOREIGN, path)
            elif entry.is_dir():
                yield from _images_below(path, (*ancestors, identity), tally)
            elif _suffix_known(path.name) or (not path.suffix and entry.is_file() and is_image(path)):
                yield path
            else:
                tally.add("files that are not images that Pillow reads left out", path)


def _holds_images(folder: Path) -> bool:
    return any(_suffix_known(entry.name) and not entry.is_dir() for entry in folder.iterdir())


def _suffix_known(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in suffixes()


def _normal(folder: Path) -> str:
    """The name of a class folder, however a file system spells it."""
    return unicodedata.normalize("NFC", folder.name)


def _plain(folder: Path) -> str:
    """The name of a folder in lower case, without the marks between its words."""
    return "".join(letter for letter in folder.name.lower() if letter.isalnum())


def _is_foreign(name: str) -> bool:
    """Whether a file or folder is the system's and not part of the data set, such as `._a.png` and `__MACOSX`."""
    return name.startswith((".", "__")) or name.lower() in _SYSTEM
