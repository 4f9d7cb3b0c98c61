"""Open a packed data set in milliseconds, and read its images. The format is described in format.py."""

import os
import threading
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from fastdm.data.packed.format import PARTS, PackedFile
from fastdm.data.pool import Dataset, Pool, gather_images
from fastdm.errors import FastDMError
from fastdm.system.device import free_memory
from fastdm.system.native import logger, native

IO = Literal["auto", "mmap", "direct", "ram", "device"]


def open_packed(path: str | os.PathLike[str], io: IO = "auto", device: torch.device | str | None = None) -> Dataset:
    """Open a packed file. Only its header is read, in milliseconds, unless io asks for more.

    io says where the images are kept:

    - `"auto"`: on `device` if that is a CUDA device and they fit there; else `"mmap"` if they fit into
      memory; else `"direct"`;
    - `"mmap"`: mapped; if they fit into memory they are brought into it when they are first gathered;
    - `"ram"`: copied into memory now;
    - `"device"`: copied to `device` (by default the current CUDA device) now;
    - `"direct"`: left on disk; `gather` and `stream` read them past the page cache, 32 at a time.

    Raises FastDMError, naming the file, for one that is not a packed file, was cut short, is damaged, or has a newer
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
    gpu = None if device is None or not torch.cuda.is_available() else torch.device(device)
    # The other half is for the networks.
    if gpu is not None and gpu.type == "cuda" and wanted <= free_memory(gpu) // 2:
        return "device"
    return "mmap" if wanted <= free_memory() * 3 // 4 else "direct"


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
    raise FastDMError(f"io {io!r} is not one of auto, mmap, direct, ram, device")


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
            if not self._populated and self.file.entries[self.name].bytes <= free_memory():
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
