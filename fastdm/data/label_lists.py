"""Which class each image of a flat folder belongs to, by the lists that Tiny-ImageNet and ImageNet come with."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from fastdm.errors import FastDMError
from fastdm.system.notes import Tally

FilesByClass = dict[str, list[Path]]

_TINY, _KAGGLE, _DEVKIT = "val_annotations.txt", "LOC_val_solution.csv", Path("ILSVRC2012_devkit_t12", "data")
WANTED = f"{_TINY} (Tiny-ImageNet), {_KAGGLE} or {_DEVKIT.parent}/ (ImageNet)"


def tiny_imagenet(folder: Path, tally: Tally) -> FilesByClass | None:
    """The images of Tiny-ImageNet's `val/`, by the list in it; None if there is none."""
    table = folder / _TINY
    return _grouped(table, _tiny_labels(table), folder / "images", tally) if table.is_file() else None


def imagenet(folder: Path, places: Sequence[Path], tally: Tally) -> FilesByClass | None:
    """The images of ImageNet's `val/`, by a list in one of `places`; None if there is none."""
    for place in places:
        if (table := place / _KAGGLE).is_file():
            return _grouped(table, _kaggle_labels(table), folder, tally)
        if (devkit := place / _DEVKIT).is_dir():
            return _grouped(devkit, _devkit_labels(devkit), folder, tally)
    return None


def _tiny_labels(table: Path) -> Iterator[tuple[str, str]]:
    for line in table.read_text(encoding="utf-8").splitlines():
        file, label = line.split("\t")[:2]
        yield label, file


def _kaggle_labels(table: Path) -> Iterator[tuple[str, str]]:
    with table.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            yield row["PredictionString"].split()[0], f"{row['ImageId']}.JPEG"


def _devkit_labels(devkit: Path) -> Iterator[tuple[str, str]]:
    try:
        from scipy.io import loadmat  # type: ignore[import-untyped]
    except ImportError as error:
        raise FastDMError(
            f"{devkit}/meta.mat needs scipy to be read (pip install scipy); LOC_val_solution.csv does without"
        ) from error
    with (devkit / "meta.mat").open("rb") as file:
        synsets = loadmat(file, squeeze_me=True)["synsets"]
    names = {int(synset[0]): str(synset[1]) for synset in synsets}
    numbers = (devkit / "ILSVRC2012_validation_ground_truth.txt").read_text(encoding="utf-8").split()
    for i, number in enumerate(numbers, start=1):
        yield names[int(number)], f"ILSVRC2012_val_{i:08d}.JPEG"


def _grouped(source: Path, labelled: Iterator[tuple[str, str]], folder: Path, tally: Tally) -> FilesByClass:
    """The files of `folder` that a list names, by class; what it does not name is counted."""
    files: FilesByClass = {}
    names = set()
    try:
        for label, name in labelled:
            if Path(name).name != name or name in ("", "..") or name in names:
                why = "twice" if name in names else "which is not a file in that folder"
                raise FastDMError(f"{source} names {name!r} of {folder}, {why}; correct the list")
            names.add(name)
            files.setdefault(label, []).append(folder / name)
    except (FastDMError, OSError):
        raise
    except Exception as error:  # csv and scipy raise each their own
        raise FastDMError(
            f"{source} is not a list of labels in the form in which it was published ({error!r})"
        ) from error
    left = sorted(path.name for path in folder.iterdir() if path.is_file() and path.name not in names)
    left = [name for name in left if name not in (_TINY, _KAGGLE)]
    if left:
        tally.add(f"files of {folder} that {source.name} does not name", left[0], len(left))
    return {label: sorted(files[label]) for label in sorted(files)}
