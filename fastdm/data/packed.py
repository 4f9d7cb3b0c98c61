"""Pack a data set into one file that opens in milliseconds, and open it. The format is described in packed_file.py."""

import os
import threading
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from fastdm.data import decode
from fastdm.data.packed_file import PARTS, PackedFile
from fastdm.data.packing import OnError, Partial, find_source
from fastdm.data.pool import Dataset, Pool, gather_images
from fastdm.errors import FastDMError
from fastdm.native import logger, native

IO = Literal["auto", "mmap", "direct", "ram", "device"]


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
    name: str | None = None,
    data_path: str | os.PathLike[str] = "data",
    progress: bool = False,
) -> PackedFile:
    """Pack a data set into one file; the same bytes whatever the number of workers.

    source: a folder of image files (see ``fastdm.data.folders.find_images``), or what ``fastdm.open_dataset`` takes.
    size: side of the packed images; by default 64 for image files, and the images' own for everything else.
    filter, fit: how images are brought to it, see ``fastdm.data.decode.decode_file``.
    workers: decoding threads, by default one for each core.
    on_error: an image that cannot be decoded ends the packing ("raise"), or is left out and listed ("skip"). A class
        that would end without training images is an error in any case.
    resume: go on with a packing that was stopped, if its source and settings are still the same.
    name: what the data set is called, by default as its folder.
    progress: show it.

    Until it is complete the file is called ``out.partial``, with a journal beside it. Returns the file, opened; its
    ``skipped`` lists what was left out. Raises FastDMError for a source that cannot be packed and for a full disk.
    """
    out = Path(out)
    decode.check_choices(filter, fit)
    if on_error not in get_args(OnError):
        raise FastDMError(f"on_error {on_error!r} is none of {', '.join(get_args(OnError))}")
    if size is not None and size < 1:
        raise FastDMError(f"size is {size}; it must be at least 1")
    if workers is not None and workers < 1:
        raise FastDMError(f"workers is {workers}; it must be at least 1")
    if out.is_dir() or not out.absolute().parent.is_dir():
        raise FastDMError(f"{out} cannot be written: it is a folder, or the folder it should stand in is not there")
    workers = workers or len(os.sched_getaffinity(0))
    try:
        images = find_source(source, size, filter, fit, name, data_path)
    except OSError as error:
        raise FastDMError(f"{source} cannot be read: {error}") from error
    try:
        with Partial(out, images, resume) as partial:
            partial.fill(workers, on_error, progress)
            partial.finish(workers)
    except OSError as error:
        raise FastDMError(
            f"{out} cannot be written: {error.strerror or error} (it takes {images.bytes / 1e9:.3g} GB)"
        ) from error
    return PackedFile(out)


def open_packed(path: str | os.PathLike[str], io: IO = "auto", device: torch.device | str | None = None) -> Dataset:
    """Open a packed file. Only its header is read, in milliseconds, unless io asks for more.

    io says where the images are kept:

    - ``"auto"``: on ``device`` if that is a CUDA device and they fit there; else ``"mmap"`` if they fit into
      memory; else ``"direct"``;
    - ``"mmap"``: mapped; if they fit into memory they are brought into it when they are first gathered;
    - ``"ram"``: copied into memory now;
    - ``"device"``: copied to ``device`` (by default the current CUDA device) now;
    - ``"direct"``: left on disk; ``gather`` and ``stream`` read them past the page cache, 32 at a time.

    Raises FastDMError, naming the file, for one that is no packed file, was cut short, is damaged, or has a newer
    major version.
    """
    try:
        file = PackedFile(Path(path))
    except OSError as error:
        raise FastDMError(f"{path} cannot be opened: {error.strerror or error}") from error
    if io == "auto":
        io = _residency(file, device)
    pools = {part: _pool(file, part, io, device) for part in file.offsets}
    return Dataset(
        file.metadata.get("name", ""), pools["train"], pools.get("test"), file.class_names, file.mean, file.std
    )


def _residency(file: PackedFile, device: torch.device | str | None) -> IO:
    wanted = file.entries["images"].bytes
    if device is not None and torch.device(device).type == "cuda" and torch.cuda.is_available():
        free, _ = torch.cuda.mem_get_info(device)
        if wanted <= free // 2:  # the other half is for the networks
            return "device"
    return "mmap" if wanted <= available_memory() * 3 // 4 else "direct"


def available_memory() -> int:
    """Bytes that can be had without swapping, in this process's control group."""
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    available = int(fields["MemAvailable"].split()[0]) * 1024
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.exists() else "max"
    return available if text == "max" else min(available, int(text))


def _pool(file: PackedFile, part: str, io: IO, device: torch.device | str | None) -> Pool:
    name = f"{PARTS[part]}images"
    images, offsets = file.tensor(name), file.offsets[part]
    if io == "mmap":
        return Pool(images, offsets, _Mapped(file, name))
    if io == "direct":
        return Pool(images, offsets, _Direct(file, name) if native() else _Mapped(file, name))
    if io == "device":
        return Pool(images, offsets, _Mapped(file, name)).to(device or "cuda")
    if io == "ram":
        return Pool(images.clone(), offsets)
    raise FastDMError(f"io {io!r} is none of auto, mmap, direct, ram, device")


class _Mapped:
    """Gathers from the mapping, after bringing all of it into memory once."""

    def __init__(self, file: PackedFile, name: str) -> None:
        self.file, self.name = file, name
        self.images = file.tensor(name)
        self._populated = False
        self._populating = threading.Lock()

    def gather(self, index: Tensor, out: Tensor) -> None:
        self.file.check_unchanged()
        with self._populating:
            if not self._populated and self.file.entries[self.name].bytes <= available_memory():
                self.file.populate(self.name)
            self._populated = True
        gather_images(self.images, index, out)


class _Direct:
    """Reads past the page cache."""

    def __init__(self, file: PackedFile, name: str) -> None:
        self.file, self.begin = file, file.entries[name].begin
        self._records = native().RecordFile(str(file.path))  # type: ignore[union-attr]
        if not self._records.direct:
            logger.info("%s: this file system has no direct reads; reading through the page cache", file.path)

    def gather(self, index: Tensor, out: Tensor) -> None:
        self.file.check_unchanged()
        try:
            self._records.read(self.begin, index, out)
        except OSError as error:
            raise FastDMError(str(error)) from error
