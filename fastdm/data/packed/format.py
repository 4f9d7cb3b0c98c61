"""The format of packed data sets: one file of class-sorted uint8 images.

The layout is safetensors', so that any reader of it opens the file: 8 bytes of header length, a JSON header padded with
spaces to a multiple of 4,096 bytes, then the tensors one after the other:

    images, test_images                   U8 [N, C, S, S], sorted by class; the test part may be absent
    skipped                               U8: JSON list of [file, error] that could not be packed
    class_offsets, test_class_offsets     I64 [classes + 1]
    class_crc32, test_class_crc32         I64 [classes]: CRC-32 of each class's images
    source_index, test_source_index       I64 [N]: which image of the source, counted in its order, this is

The metadata (strings) says how it was made; see `PackedFile.metadata`. From version 1.1 on it holds two checksums,
`index_crc32` of source_index and test_source_index, and `checksum` of all the rest but the images: metadata, names,
types, shapes and places of the tensors, and the contents of the small ones. Opening compares the latter.
"""

import json
import math
import mmap
import operator
import os
import re
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import torch
from torch import Tensor

from fastdm.errors import FastDMError
from fastdm.system.checks import check_normalisation, check_regular, parse_json

FORMAT = "fastdm.packed"
VERSION = (1, 1)
_CHECKSUMS_SINCE = (1, 1)
PAGE = 4096
PARTS = {"train": "", "test": "test_"}  # prefix of each part's tensors
_HEADER_LIMIT = 100_000_000  # safetensors' own
_DTYPES = {"U8": torch.uint8, "I64": torch.int64}
_SKIPPED_LIMIT = 1 << 30
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
        versions (JSON object of what made it), checksum, index_crc32.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._place = path.absolute()  # the process may go to another folder
        check_regular(path)
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            self.size = status.st_size
            self.metadata, self.entries = self._read_header(file.read(8), file)
            self._stat_key = _stat_key(status)
            self.class_names = self._list("classes", str)
            self._mean, self._std = (self._list(key, (int, float)) for key in ("mean", "std"))
            self.offsets = {part: self._offsets(part, file) for part in PARTS if f"{PARTS[part]}images" in self.entries}
            self.mean, self.std = self._check()
            self._map = map_file(file.fileno(), self.size)
            self._check_sum()

    # --- copies: the file is open, and does not change

    def __copy__(self) -> "PackedFile":
        return self

    def __deepcopy__(self, memo: object) -> "PackedFile":
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _opened_again, (self._place, self.metadata)

    # --- what is in it

    def tensor(self, name: str) -> Tensor:
        """A tensor of the file, mapped. Raises FastDMError if the file was changed since it was opened."""
        self.check_unchanged()
        entry = self.entries[name]
        if entry.bytes == 0:
            return torch.empty(entry.shape, dtype=entry.dtype)
        count = math.prod(entry.shape)
        return torch.frombuffer(self._map, dtype=entry.dtype, count=count, offset=entry.begin).view(entry.shape)

    @property
    def skipped(self) -> list[tuple[str, str]]:
        """The files that could not be packed, and why."""
        listed = self.tensor("skipped").numpy().tobytes()
        try:
            entries = [(file, error) for file, error in parse_json(listed)]
        except (ValueError, TypeError):
            entries = [(0, 0)]
        if not all(isinstance(text, str) for entry in entries for text in entry):
            self._refuse("is damaged: its list of skipped files cannot be read")
        return entries

    def summary(self) -> dict[str, Any]:
        """What the file holds, for people and as JSON."""
        sizes = {part: offsets.diff() for part, offsets in self.offsets.items()}
        return {
            "path": str(self.path),
            "bytes": self.size,
            "shape": list(self.entries["images"].shape[1:]),
            "classes": len(self.class_names),
            "class_names": list(self.class_names),
            "parts": {
                part: {"images": int(n.sum()), "smallest class": int(n.min()), "largest class": int(n.max())}
                for part, n in sizes.items()
            },
            "mean": list(self.mean),
            "std": list(self.std),
            "skipped": self.skipped,
            "metadata": {
                name: value for name, value in self.metadata.items() if name not in ("classes", "mean", "std")
            },
        }

    def verify(self, workers: int | None = None) -> None:
        """Compare all checksums that opening does not. Raises FastDMError naming the classes whose images differ."""
        if self._version >= _CHECKSUMS_SINCE and self.metadata.get("index_crc32") != index_crc32(self._small("index")):
            self._refuse("is damaged: its source_index is not the one that was written; pack it again")
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
            now = _stat_key(self._place.stat())
        except OSError:
            return  # unlinked: the mapping keeps the old contents alive
        if now[:2] == self._stat_key[:2] and now != self._stat_key:
            self._refuse("was changed after it was opened; open it again")

    def populate(self, name: str, rows: slice) -> None:
        """Bring rows of a tensor into memory and their pages into the mapping, so that the first touch costs nothing
        later."""
        entry = self.entries[name]
        row_bytes = math.prod(entry.shape[1:]) * entry.dtype.itemsize
        begin, end = entry.begin + rows.start * row_bytes, entry.begin + rows.stop * row_bytes
        for start in range(begin // PAGE * PAGE, end, 64 << 20):
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
            header = parse_json(file.read(length))
            metadata = {str(key): str(value) for key, value in header.pop("__metadata__", {}).items()}
        except (ValueError, TypeError, AttributeError):
            self._refuse("is not a packed data set (see `fastdm pack`): its header cannot be read")
        if metadata.get("format") != FORMAT:
            self._refuse("is a safetensors file, but not a packed data set (see `fastdm pack`)")
        version = re.fullmatch(r"([0-9]{1,4})\.([0-9]{1,4})", metadata.get("version", ""))
        self._version = (int(version[1]), int(version[2])) if version else (0, 0)
        if not 1 <= self._version[0] <= VERSION[0]:
            self._refuse(
                f"has format version {metadata.get('version', '')[:20]!r}; this fastdm reads up to {VERSION[0]}: "
                "upgrade fastdm"
            )
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
            values = parse_json(self.metadata[key])
        except (KeyError, ValueError):
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

    def _check(self) -> tuple[tuple[float, ...], ...]:
        """Refuse what is not consistent; returns mean and std."""
        if "train" not in self.offsets or "skipped" not in self.entries:
            self._refuse("is damaged: it has no training images, or no list of skipped files")
        skipped = self.entries["skipped"]
        if skipped.dtype != torch.uint8 or len(skipped.shape) != 1 or skipped.bytes > _SKIPPED_LIMIT:
            self._refuse("is damaged: its list of skipped files cannot be read")
        shape = self.entries["images"].shape[1:]
        if len(shape) != 3 or shape[0] not in (1, 3) or 0 in shape or {len(self._mean), len(self._std)} != {shape[0]}:
            self._refuse(f"is damaged: images of shape {list(shape)} do not go with mean and std of its metadata")
        try:
            normalisation = check_normalisation(self._mean, self._std, shape[0])
        except ValueError as error:
            self._refuse(f"is damaged: no image can be normalised by its mean and std ({error})")
        for part, offsets in self.offsets.items():
            prefix, images = PARTS[part], self.entries[f"{PARTS[part]}images"]
            if images.dtype != torch.uint8 or images.shape[1:] != shape:
                self._refuse(f"is damaged: {prefix}images must be uint8 images of shape {list(shape)}")
            if offsets[0] != 0 or offsets[-1] != images.shape[0] or (offsets.diff() < 0).any():
                self._refuse(f"is damaged: {prefix}class_offsets must rise from 0 to {images.shape[0]}")
            if part == "train" and (len(offsets) == 1 or (offsets.diff() == 0).any()):
                self._refuse("is damaged: it has no classes, or one without training images")
            lengths = {"class_crc32": len(offsets) - 1, "source_index": images.shape[0]}
            for name, length in ((prefix + name, length) for name, length in lengths.items()):
                found = self.entries.get(name)
                if found is None or (found.dtype, found.shape) != (torch.int64, (length,)):
                    self._refuse(f"is damaged: {name} is missing or not int64 [{length}]")
        return normalisation

    def _check_sum(self) -> None:
        """Compare the checksum of all but the images and the source indices; files before version 1.1 have none."""
        stored = self.metadata.get("checksum")
        if stored is None and self._version < _CHECKSUMS_SINCE:
            return
        if stored != checksum(self.metadata, self.entries, self._small("described")):
            self._refuse(
                "is damaged: what it says of its images (names, mean, std, …) is not what was written; pack it again"
            )

    def _small(self, which: str) -> dict[str, Tensor]:
        return {name: self.tensor(name) for name in self.entries if SUMMED.get(name.removeprefix("test_")) == which}


def _opened_again(path: Path, metadata: dict[str, str]) -> PackedFile:
    """The file of a pickle, which has the metadata with the checksum of all that it says of its images."""
    file = PackedFile(path)
    if file.metadata != metadata:
        raise FastDMError(f"{path} is not the file that was pickled: it was packed again; reopen it and pickle that")
    return file


SUMMED = {
    "skipped": "described",
    "class_offsets": "described",
    "class_crc32": "described",
    "source_index": "index",
}
"""Which of the two checksums in the metadata covers the content of a tensor."""


def checksum(metadata: Mapping[str, str], entries: Mapping[str, Entry], small: Mapping[str, Tensor]) -> str:
    """CRC-32 of the metadata (but for this checksum itself), of where which tensor is, and of the small tensors."""
    facts = [
        sorted((key, value) for key, value in metadata.items() if key != "checksum"),
        sorted((name, str(entry.dtype), entry.shape, entry.begin) for name, entry in entries.items()),
    ]
    return _crc32(small, zlib.crc32(json.dumps(facts).encode()))


def index_crc32(small: Mapping[str, Tensor]) -> str:
    return _crc32(small, 0)


def _crc32(tensors: Mapping[str, Tensor], start: int) -> str:
    for name in sorted(tensors):
        start = zlib.crc32(tensors[name].numpy().reshape(-1).data, start)
    return str(start)


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
    for name, entry in place(tensors, 0).items():
        offsets = [entry.begin, entry.begin + entry.bytes]
        header[name] = {"dtype": tensors[name][0], "shape": list(entry.shape), "data_offsets": offsets}
    text = json.dumps(header, separators=(",", ":")).encode()
    return (images_at - 8).to_bytes(8, "little") + text.ljust(images_at - 8)


def place(tensors: Mapping[str, tuple[str, tuple[int, ...]]], begin: int) -> dict[str, Entry]:
    """Where tensors (dtype, shape) lie that follow one another from byte `begin` on."""
    entries = {}
    for name, (dtype, shape) in tensors.items():
        entries[name] = Entry(_DTYPES[dtype], shape, begin)
        begin += entries[name].bytes
    return entries
