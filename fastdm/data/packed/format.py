"""The format of packed data sets: one file of class-sorted uint8 images.

The layout is safetensors', so that any reader of it opens the file: 8 bytes of header length, a JSON header padded with
spaces to a multiple of 4,096 bytes, then the tensors one after the other:

    images, test_images                   U8 [N, C, S, S], sorted by class; the test part may be absent
    skipped                               U8: JSON list of [file, error] that could not be packed
    class_offsets, test_class_offsets     I64 [classes + 1]
    class_crc32, test_class_crc32         I64 [classes]: CRC-32 of each class's images
    source_index, test_source_index       I64 [N]: which image of the source, counted in its order, this is

The metadata (strings) says how it was made; see `PackedFile.metadata`.
"""

import json
import math
import mmap
import operator
import os
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import torch
from torch import Tensor

from fastdm.errors import FastDMError

FORMAT = "fastdm.packed"
VERSION = (1, 0)
PAGE = 4096
PARTS = {"train": "", "test": "test_"}  # prefix of each part's tensors
_HEADER_LIMIT = 100_000_000  # safetensors' own
_DTYPES = {"U8": torch.uint8, "I64": torch.int64}
_MADV_POPULATE_READ = 22
_MAP_NORESERVE = 0x4000


@dataclass(frozen=True)
class Entry:
    """A tensor in the file: where it begins, in bytes from the file's start."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class PackedFile:
    """An open packed file whose structure has been checked; the images have not been read.

    metadata: format, version, name, classes (JSON list of names), mean, std (JSON lists), size, filter, fit, decoder,
        versions (JSON object of what made it).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            self.size = status.st_size
            self.metadata, self.entries = self._read_header(file.read(8), file)
            self._stat_key = _stat_key(status)
            self.class_names = self._list("classes", str)
            self.mean, self.std = (tuple(map(float, self._list(key, (int, float)))) for key in ("mean", "std"))
            self.offsets = {part: self._offsets(part, file) for part in PARTS if f"{PARTS[part]}images" in self.entries}
            self._check()
            self._map = map_file(file.fileno(), self.size)

    # --- what is in it

    def tensor(self, name: str) -> Tensor:
        """A tensor of the file, mapped."""
        entry = self.entries[name]
        if entry.bytes == 0:
            return torch.empty(entry.shape, dtype=entry.dtype)
        count = math.prod(entry.shape)
        return torch.frombuffer(self._map, dtype=entry.dtype, count=count, offset=entry.begin).view(entry.shape)

    @property
    def skipped(self) -> list[tuple[str, str]]:
        """The files that could not be packed, and why."""
        return [(file, error) for file, error in json.loads(bytes(self.tensor("skipped").tolist()))]

    def summary(self) -> dict[str, Any]:
        """What the file holds, for people and as JSON."""
        sizes = {part: offsets.diff() for part, offsets in self.offsets.items()}
        return {
            "path": str(self.path),
            "bytes": self.size,
            "shape": list(self.entries["images"].shape[1:]),
            "classes": len(self.class_names),
            "parts": {
                part: {"images": int(n.sum()), "smallest class": int(n.min()), "largest class": int(n.max())}
                for part, n in sizes.items()
            },
            "mean": list(self.mean),
            "std": list(self.std),
            "skipped": self.skipped,
            "metadata": dict(self.metadata),
        }

    def verify(self, workers: int | None = None) -> None:
        """Compare the CRC of every class with the one that was written. Raises FastDMError naming those that differ."""
        wrong = []
        for part, offsets in self.offsets.items():
            crcs = class_crcs(self.tensor(f"{PARTS[part]}images"), offsets, workers)
            stored = self.tensor(f"{PARTS[part]}class_crc32").tolist()
            classes = zip(self.class_names, crcs, stored, strict=True)
            wrong += [f"{name} ({part})" for name, crc, packed in classes if crc != packed]
        if wrong:
            self._refuse(
                f"is damaged: the images of {len(wrong)} classes are not those that were packed "
                f"({', '.join(wrong[:5])}{', …' if len(wrong) > 5 else ''}); pack it again"
            )

    # --- reading

    def check_unchanged(self) -> None:
        """Raise FastDMError if the file was changed since it was opened: a mapping of it may then end the process."""
        try:
            now = _stat_key(self.path.stat())
        except OSError:
            return  # unlinked: the mapping keeps the old contents alive
        if now[:2] == self._stat_key[:2] and now != self._stat_key:
            self._refuse("was changed after it was opened; open it again")

    def populate(self, name: str) -> None:
        """Bring a tensor into memory and its pages into the mapping, so that the first touch costs nothing later."""
        entry = self.entries[name]
        end = entry.begin + entry.bytes
        for start in range(entry.begin // PAGE * PAGE, end, 64 << 20):
            try:
                self._map.madvise(_MADV_POPULATE_READ, start, min(64 << 20, end - start))
            except OSError:  # before Linux 5.14
                self._map.madvise(mmap.MADV_WILLNEED, start, end - start)
                return

    # --- checking

    def _refuse(self, why: str) -> NoReturn:
        raise FastDMError(f"{self.path} {why}")

    def _read_header(self, start: bytes, file: BinaryIO) -> tuple[dict[str, str], dict[str, Entry]]:
        length = int.from_bytes(start, "little")
        if len(start) < 8 or not 2 <= length <= min(_HEADER_LIMIT, self.size - 8):
            self._refuse("is not a packed data set (see `fastdm pack`), or was cut short")
        try:
            header = json.loads(file.read(length))
            metadata = {str(key): str(value) for key, value in header.pop("__metadata__", {}).items()}
        except (ValueError, TypeError, AttributeError, RecursionError):
            self._refuse("is not a packed data set (see `fastdm pack`): its header cannot be read")
        if metadata.get("format") != FORMAT:
            self._refuse("is a safetensors file, but not a packed data set (see `fastdm pack`)")
        version = metadata.get("version", "")
        if not version.split(".")[0].isdecimal() or int(version.split(".")[0]) > VERSION[0]:
            self._refuse(f"has format version {version!r}; this fastdm reads up to {VERSION[0]}: upgrade fastdm")
        try:
            entries = {name: _entry(tensor, 8 + length) for name, tensor in header.items()}
        except (ValueError, KeyError, TypeError, AttributeError):
            self._refuse("is damaged: its header describes impossible tensors")
        end = max((entry.begin + entry.bytes for entry in entries.values()), default=8 + length)
        if end != self.size:
            self._refuse(f"has {self.size} bytes, but its header declares {end}: it was cut short or damaged")
        return metadata, entries

    def _list(self, key: str, kinds: type | tuple[type, ...]) -> tuple[Any, ...]:
        try:
            values = json.loads(self.metadata[key])
        except (KeyError, ValueError, RecursionError):
            values = None
        if not isinstance(values, list) or not all(isinstance(value, kinds) for value in values):
            self._refuse(f"is damaged: {key} is missing in its metadata, or not what it should be")
        return tuple(values)

    def _offsets(self, part: str, file: BinaryIO) -> Tensor:
        entry = self.entries.get(f"{PARTS[part]}class_offsets")
        if entry is None or entry.dtype != torch.int64 or entry.shape != (len(self.class_names) + 1,):
            self._refuse(f"is damaged: the class offsets of its {part} part are missing or of a wrong shape")
        file.seek(entry.begin)
        return torch.frombuffer(bytearray(file.read(entry.bytes)), dtype=torch.int64)

    def _check(self) -> None:
        if "train" not in self.offsets or "skipped" not in self.entries:
            self._refuse("is damaged: it has no training images, or no list of skipped files")
        if len(set(self.class_names)) != len(self.class_names):
            self._refuse("is damaged: two of its classes have the same name")
        shape = self.entries["images"].shape[1:]
        if len(shape) != 3 or shape[0] not in (1, 3) or len(self.mean) != shape[0] or len(self.std) != shape[0]:
            self._refuse(f"is damaged: images of shape {list(shape)} do not go with mean and std of its metadata")
        if not all(map(math.isfinite, self.mean + self.std)) or min(self.std) <= 0:
            self._refuse(f"is damaged: no image can be normalised by mean {self.mean} and std {self.std}")
        for part, offsets in self.offsets.items():
            prefix, images = PARTS[part], self.entries[f"{PARTS[part]}images"]
            if images.dtype != torch.uint8 or images.shape[1:] != shape:
                self._refuse(f"is damaged: {prefix}images must be uint8 images of shape {list(shape)}")
            if offsets[0] != 0 or offsets[-1] != images.shape[0] or (offsets.diff() < 0).any():
                self._refuse(f"is damaged: {prefix}class_offsets must rise from 0 to {images.shape[0]}")
            lengths = {"class_crc32": len(offsets) - 1, "source_index": images.shape[0]}
            for name, length in ((prefix + name, length) for name, length in lengths.items()):
                found = self.entries.get(name)
                if found is None or (found.dtype, found.shape) != (torch.int64, (length,)):
                    self._refuse(f"is damaged: {name} is missing or not int64 [{length}]")


def _entry(tensor: Any, data: int) -> Entry:
    """What a header says of a tensor; `data`: where the header ends. Raises one of many errors for nonsense."""
    begin, end = tensor["data_offsets"]
    shape = tuple(operator.index(size) for size in tensor["shape"])
    entry = Entry(_DTYPES[tensor["dtype"]], shape, data + operator.index(begin))
    if min(shape, default=0) < 0 or begin < 0 or end - begin != entry.bytes:
        raise ValueError
    return entry


def map_file(file: int, size: int) -> mmap.mmap:
    """A private mapping: a write to it cannot reach the file. MAP_NORESERVE, so that its size takes no memory."""
    return mmap.mmap(file, size, flags=mmap.MAP_PRIVATE | _MAP_NORESERVE, prot=mmap.PROT_READ | mmap.PROT_WRITE)


def _stat_key(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def class_crcs(images: Tensor, offsets: Tensor, workers: int | None = None) -> list[int]:
    """CRC-32 of the images of each class."""
    pixels = images.reshape(-1).numpy().data
    image_bytes = math.prod(images.shape[1:])
    bounds = [int(offset) * image_bytes for offset in offsets]
    with ThreadPoolExecutor(workers) as threads:
        return list(threads.map(lambda begin, end: zlib.crc32(pixels[begin:end]), bounds[:-1], bounds[1:]))


def header_bytes(
    metadata: Mapping[str, str], tensors: Mapping[str, tuple[str, tuple[int, ...]]], images_at: int
) -> bytes:
    """The file's first `images_at` bytes, for tensors (dtype, shape) that follow one another in this order."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    begin = 0
    for name, (dtype, shape) in tensors.items():
        end = begin + math.prod(shape) * _DTYPES[dtype].itemsize
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(header, separators=(",", ":")).encode()
    return (images_at - 8).to_bytes(8, "little") + text.ljust(images_at - 8)
