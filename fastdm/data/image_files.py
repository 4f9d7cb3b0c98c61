"""Open a folder of image files as a data set."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from fastdm.data.arrays import Split, empty_images, make_dataset
from fastdm.data.decode import Pixels, decode_file
from fastdm.data.folders import find_images
from fastdm.data.label_lists import FilesByClass
from fastdm.data.pool import Dataset
from fastdm.errors import FastDMError
from fastdm.system.files import reason
from fastdm.system.memory import is_exhausted
from fastdm.system.notes import Tally


def open_folder(root: Path, name: str, size: tuple[int, int] | None) -> Dataset:
    """The images below `root` (see `find_images`) as a data set; without `size` they must all be of one size."""
    tally = Tally()
    try:
        folders = find_images(root, tally)
        class_names = list(folders.class_names)
        train = _decode_all(folders.train, class_names, size, tally)
        test = None if folders.test is None else _decode_all(folders.test, class_names, size, tally)
    finally:
        tally.report(root)
    return make_dataset(name, train, test, class_names)


def _decode_all(files: FilesByClass, class_names: list[str], size: tuple[int, int] | None, tally: Tally) -> Split:
    """Decode all files on all cores."""
    paths = [path for label in class_names for path in files.get(label, [])]
    counts = torch.tensor([len(files.get(label, [])) for label in class_names])
    shape = (3, *size) if size else _decode(paths[0], None, Tally()).shape
    images = empty_images(len(paths), shape, "a smaller image_size, or a packed file (fastdm pack), needs less")
    rows = images.numpy()

    def decode(row: int) -> None:
        pixels = _decode(paths[row], size, tally)
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


def _decode(path: Path, size: tuple[int, int] | None, tally: Tally) -> Pixels:
    try:
        return decode_file(path, size, tally=tally)
    except Exception as error:  # Pillow's decoders raise many kinds
        if is_exhausted(error):
            raise
        raise FastDMError(f"{path} is not a readable image: {reason(error)}") from error
