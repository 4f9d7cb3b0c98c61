"""Write a packed file: where its images come from, and the partial file that they are decoded into."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from fastdm.data import decode
from fastdm.data.folders import find_images, folder_name
from fastdm.data.map_style import open_map_style, parts_of
from fastdm.data.packed.format import PackedFile
from fastdm.data.packed.writing import OnError, PackSource, Partial, fingerprint, pool_state
from fastdm.data.pool import Dataset
from fastdm.data.sources import open_dataset
from fastdm.errors import FastDMError, whole_number
from fastdm.system.checks import irregular
from fastdm.system.device import undisturbed
from fastdm.system.files import reason, user_path
from fastdm.system.memory import is_exhausted, within_memory
from fastdm.system.notes import Tally


@within_memory("pack a folder of image files, which are read one at a time, with fewer workers or a smaller size")
@undisturbed()
def pack(
    source: Any,
    out: str | os.PathLike[str],
    size: int | None = None,
    filter: decode.Filter = "box",
    fit: decode.Fit = "squash",
    workers: int | None = None,
    on_error: OnError = "raise",
    *,
    resume: bool = False,
    overwrite: bool = False,
    name: str | None = None,
    data_path: str | os.PathLike[str] = "data",
    progress: bool = False,
) -> PackedFile:
    """Pack a data set into one file; the same bytes whatever the number of workers.

    source: a folder of image files (see `fastdm.data.folders.find_images`), or what `fastdm.open_dataset` takes.
    size: side of the packed images; by default 64 for image files, and the images' own for everything else.
    filter, fit: how images are brought to it, see `fastdm.data.decode.decode_file`.
    workers: decoding threads, by default one for each core.
    on_error: an image that cannot be decoded ends the packing ("raise"), or is left out and listed ("skip"). A class
        that would end without training images is an error in any case.
    resume: continue a packing that was stopped, if its source and settings are still the same.
    overwrite: pack also where `out` is there already, which is replaced once the new one is complete.
    name: what the data set is called, by default as its folder.
    progress: show a bar on a terminal, JSON lines elsewhere.

    Until it is complete the file is called `out.partial`, with a journal next to it. A symbolic link there is followed.
    Returns the file, opened; its `skipped` lists the images that could not be decoded. What else is left out or
    converted is counted and named in one warning of the logger "fastdm". Raises FastDMError for a source that cannot be
    packed, for a file that is there already, and for a full disk.

    >>> import fastdm, tempfile
    >>> packed = fastdm.pack("digits", tempfile.mkdtemp() + "/digits.fastdm")
    >>> len(fastdm.open_dataset(packed.path).train)
    1437
    """
    out = user_path(out)
    if isinstance(source, str) and source.startswith("~"):
        source = user_path(source)
    decode.check_choices(filter, fit)
    if on_error not in get_args(OnError):
        raise FastDMError(f"on_error {on_error!r} is not one of {', '.join(get_args(OnError))}")
    size = None if size is None else whole_number("size", size, 1)
    workers = len(os.sched_getaffinity(0)) if workers is None else whole_number("workers", workers, 1)
    if isinstance(source, str) and not source:
        raise FastDMError("the name of the data set is empty; give a name or a path")
    if resume and overwrite:
        raise FastDMError("resume continues a packing, and overwrite starts over: ask for one of them")
    try:
        target = _target(out)
        if target.exists() and not overwrite and not (resume and Path(f"{target}.partial").exists()):
            raise FastDMError(f"{out} is there already: overwrite it, or choose another file (--overwrite)")
    except OSError as error:
        raise FastDMError(f"{out} cannot be written: {reason(error)}") from error
    try:
        images = find_source(source, size, filter, fit, name, data_path)
    except OSError as error:
        raise FastDMError(f"{source} cannot be read: {error}") from error
    try:
        with Partial(target, images, resume, overwrite) as partial:
            partial.fill(workers, on_error, progress)
            partial.finish(workers)
        images.tally.report(images.name)
    except OSError as error:
        if is_exhausted(error):
            raise
        failed = FastDMError(
            f"{out} cannot be written: {error.strerror or error} (it takes {images.bytes / 1e9:.3g} GB)"
        )
        for note in getattr(error, "__notes__", ()):  # what is packed so far
            failed.add_note(note)
        raise failed from error
    return PackedFile(out)


def _target(out: Path) -> Path:
    """The file to write, if it can be: a link is followed, also one to a file that is not there yet."""
    if out.is_dir() or not out.absolute().parent.is_dir():
        raise FastDMError(f"{out} cannot be written: it is a folder, or the folder it should stand in is not there")
    if out.exists() and (kind := irregular(out.stat())):
        raise FastDMError(f"{out} is {kind}, which is not replaced; name a file")
    target = Path(os.path.realpath(out))
    if not target.parent.is_dir():
        raise FastDMError(f"{out} cannot be written: it is a link into {target.parent}, which is not there")
    return target


def find_source(
    source: Any,
    size: int | None,
    filter: decode.Filter,
    fit: decode.Fit,
    name: str | None,
    data_path: str | os.PathLike[str],
) -> PackSource:
    settings: dict[str, str] = {"filter": filter, "fit": fit}
    if isinstance(source, str | os.PathLike) and Path(source).is_dir():
        return _folder_source(Path(source), size or 64, filter, fit, name, settings)
    if size is not None and (parts := parts_of(source)):
        # Items of PyTorch's datasets may differ in size; all other images have one, and are resized from it.
        opened = open_map_style(parts, None, (size, size), filter, fit)
        return _dataset_source(opened, None, filter, fit, name, settings | {"size": str(size)})
    opened = open_dataset(source, data_path=data_path)
    settings |= {"size": "x".join(map(str, opened.image_shape[1:])) if size is None else str(size)}
    if size is None or (size, size) == opened.image_shape[1:]:
        size, settings = None, settings | {"filter": "none", "fit": "none"}
    return _dataset_source(opened, size, filter, fit, name, settings)


def _folder_source(
    root: Path, size: int, filter: decode.Filter, fit: decode.Fit, name: str | None, settings: dict[str, str]
) -> PackSource:
    tally = Tally()
    folders = find_images(root, tally)
    parts = {"train": folders.train} | ({} if folders.test is None else {"test": folders.test})
    counts = {part: [len(files.get(label, ())) for label in folders.class_names] for part, files in parts.items()}
    files = [path for part in parts.values() for label in folders.class_names for path in part.get(label, ())]
    settings |= {"size": str(size), "decoder": decode.decoder_name()}

    def states() -> Iterator[str]:
        for path in files:
            status = path.stat() if path.exists() else None  # decoding it will say so, or skip it
            yield f"{path.relative_to(root)}\0{status and (status.st_size, status.st_mtime_ns)}\n"

    return PackSource(
        name=name or folder_name(root),
        class_names=folders.class_names,
        counts=counts,
        shape=(3, size, size),
        read=lambda i: decode.decode_file(files[i], size, filter, fit, tally),
        label=lambda i: str(files[i].relative_to(root)),
        settings=settings,
        fingerprint=fingerprint(settings, counts, states()),
        normalisation=None,
        tally=tally,
    )


def _dataset_source(
    dataset: Dataset,
    size: int | None,
    filter: decode.Filter,
    fit: decode.Fit,
    name: str | None,
    settings: dict[str, str],
) -> PackSource:
    """size: what the images are resized to, None if they are taken as they are."""
    pools = {"train": dataset.train} | ({} if dataset.test is None else {"test": dataset.test})
    counts = {part: pool.class_sizes.tolist() for part, pool in pools.items()}
    train_count = len(dataset.train)
    channels, height, width = dataset.image_shape
    settings = settings | {"decoder": "none"}

    def read(i: int) -> decode.Pixels:
        pool, row = (dataset.train, i) if i < train_count else (pools["test"], i - train_count)
        pixels: decode.Pixels = pool.images[row].numpy()
        return pixels if size is None else decode.resize(pixels, size, filter, fit)

    return PackSource(
        name=name or dataset.name,
        class_names=dataset.class_names,
        counts=counts,
        shape=(channels, height, width) if size is None else (channels, size, size),
        read=read,
        label=lambda i: f"image {i}",
        settings=settings,
        fingerprint=fingerprint(settings, counts, map(pool_state, pools.values())),
        normalisation=(dataset.mean, dataset.std),
    )
