"""Open a packed data set in milliseconds, and read its images. The format is described in format.py."""

import math
import os
from typing import Any, Literal, Self

import torch
from torch import Tensor

from fastdm.data.packed.format import PARTS, PackedFile
from fastdm.data.pool import Dataset, Pool, gather_images
from fastdm.errors import FastDMError
from fastdm.system.device import free_memory, processes_here
from fastdm.system.files import user_path
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
        file = PackedFile(user_path(path))
    except OSError as error:
        raise FastDMError(f"{path} cannot be opened: {error.strerror or error}") from error
    chosen = _residency(file, device) if io == "auto" else io
    pools = {part: _pool(file, part, chosen, device, decided=io != "auto") for part in file.offsets}
    return Dataset(
        file.metadata.get("name", ""), pools["train"], pools.get("test"), file.class_names, file.mean, file.std
    )


def _residency(file: PackedFile, device: torch.device | str | None) -> IO:
    wanted = file.entries["images"].bytes
    gpu = None if device is None or not torch.cuda.is_available() else torch.device(device)
    # The other half is for the networks.
    if gpu is not None and gpu.type == "cuda" and wanted <= free_memory(gpu) // 2:
        return "device"
    return "mmap" if fits_memory(wanted, _share()) else "direct"


def fits_memory(size: int, free: int) -> bool:
    """Whether a file of so many bytes is mapped where so many are free, and not read directly."""
    return size <= free * 3 // 4


def _share() -> int:
    """The free memory of this process, where it shares the machine with others of its job."""
    return free_memory() // processes_here()


def _pool(file: PackedFile, part: str, io: IO, device: torch.device | str | None, decided: bool) -> Pool:
    """decided: whether io was asked for; else a part that fits into memory may be mapped where the whole is not."""
    name = f"{PARTS[part]}images"
    images, offsets = file.tensor(name), file.offsets[part]
    rows = slice(0, len(images))
    if io == "mmap":
        return Pool(images, offsets, _Mapped(file, name, rows))
    if io == "direct":
        return Pool(images, offsets, _Direct(file, name, rows, decided) if native() else _Mapped(file, name, rows))
    if io == "device":
        return Pool(images, offsets, _Mapped(file, name, rows)).to(device or "cuda")
    if io == "ram":
        return Pool(images.clone(), offsets)
    raise FastDMError(f"io {io!r} is not one of auto, mmap, direct, ram, device")


class _Backing:
    """The rows of one tensor of a file. It does not change: a copy is itself, and a pickle names the file."""

    def __init__(self, file: PackedFile, name: str, rows: slice) -> None:
        self._file, self._name, self._rows = file, name, rows

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._file, self._name, self._rows)

    @property
    def images(self) -> Tensor:
        return self._file.tensor(self._name)[self._rows]


class _Mapped(_Backing):
    """Gathers from the mapping, after bringing all of its rows into memory once."""

    def __init__(self, file: PackedFile, name: str, rows: slice) -> None:
        super().__init__(file, name, rows)
        self._images = self.images
        self._populated = False

    def ready(self) -> bool:
        self._file.check_unchanged()
        # Without a lock: another thread may as well read meanwhile, and a fork would find the lock held for ever.
        if not self._populated:
            self._populated = True
            if self._images.numel() <= free_memory():
                self._file.populate(self._name, self._rows)
        return True

    def gather(self, index: Tensor, out: Tensor) -> None:
        self.ready()
        gather_images(self._images, index, out)

    def part(self, rows: slice) -> "_Mapped":
        return _Mapped(self._file, self._name, _within(self._rows, rows))


class _Direct(_Backing):
    """Reads past the page cache. decided: whether a part of it is read so too, however small it is.

    records: the file that the whole is read from. A part reads the same one: by now its name may be another file's.
    """

    def __init__(self, file: PackedFile, name: str, rows: slice, decided: bool, records: Any = None) -> None:
        super().__init__(file, name, rows)
        self._decided = decided
        entry = file.entries[name]
        self._image_bytes = math.prod(entry.shape[1:])
        self._begin = entry.begin + rows.start * self._image_bytes
        self._records = records or native().RecordFile(str(file.path))  # type: ignore[union-attr]
        if records is None and not self._records.direct:
            logger.info("%s: this file system has no direct reads; reading through the page cache", file.path)

    def ready(self) -> bool:
        return False

    def gather(self, index: Tensor, out: Tensor) -> None:
        self._file.check_unchanged()
        try:
            self._records.read(self._begin, index, out)
        except OSError as error:
            raise FastDMError(str(error)) from error

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._file, self._name, self._rows, self._decided)

    def part(self, rows: slice) -> "_Mapped | _Direct":
        within = _within(self._rows, rows)
        if not self._decided and fits_memory((within.stop - within.start) * self._image_bytes, _share()):
            return _Mapped(self._file, self._name, within)
        return _Direct(self._file, self._name, within, self._decided, self._records)


def _within(outer: slice, inner: slice) -> slice:
    """The rows `inner`, which count from the first of `outer`, counted as `outer` does."""
    return slice(outer.start + inner.start, outer.start + inner.stop)
