"""Write a packed file: the partial file that images are decoded into, and its journal."""

import contextlib
import hashlib
import json
import math
import os
import zlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np
import torch
from torch import Tensor

from fastdm.data import decode
from fastdm.data.normalisation import normalisation
from fastdm.data.packed.format import (
    FORMAT,
    PAGE,
    PARTS,
    SUMMED,
    VERSION,
    checksum,
    class_crcs,
    header_bytes,
    index_crc32,
    map_file,
    place,
)
from fastdm.data.pool import Pool
from fastdm.errors import FastDMError
from fastdm.system.files import open_locked
from fastdm.system.memory import is_exhausted
from fastdm.system.notes import Tally
from fastdm.system.progress import Progress

OnError = Literal["raise", "skip"]
_BLOCK = 2048  # images between two entries of the journal
_TASK = 32  # images that a worker takes at a time
_PIECE = 8 << 20  # bytes that are moved at a time


@dataclass(frozen=True)
class PackSource:
    """Images to pack, those of the training part first, each part sorted by class."""

    name: str
    class_names: tuple[str, ...]
    counts: dict[str, list[int]]  # images of each class, by part
    shape: tuple[int, ...]
    read: Callable[[int], decode.Pixels]
    label: Callable[[int], str]
    settings: dict[str, str]
    fingerprint: str
    normalisation: tuple[Sequence[float], Sequence[float]] | None  # None: from the pixels
    tally: Tally = field(default_factory=Tally)  # what is left out or converted

    @property
    def total(self) -> int:
        return sum(map(sum, self.counts.values()))

    @property
    def image_bytes(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.total * self.image_bytes


def pool_state(pool: Pool) -> str:
    return str(class_crcs(pool.images, pool.class_offsets))


def fingerprint(settings: dict[str, str], counts: dict[str, list[int]], states: Iterable[str]) -> str:
    digest = hashlib.sha256(json.dumps([VERSION, settings, counts]).encode())
    for state in states:
        digest.update(state.encode(errors="surrogateescape"))
    return digest.hexdigest()


class Partial:
    """`out.partial`, in which every image has its place from the start, and the journal of the finished blocks."""

    def __init__(self, out: Path, images: PackSource, resume: bool, overwrite: bool) -> None:
        self.out, self.images = out, images
        self.path = Path(f"{out}.partial")
        self.journal_path = Path(f"{out}.partial.journal")
        self.images_at = self._room_for_header()
        self.done: set[int] = set()
        self.skipped: dict[int, str] = {}  # error by image
        try:
            self.file = open_locked(self.path)
        except BlockingIOError:
            raise FastDMError(f"{self.path} is being written by another process") from None
        try:
            is_begun = os.fstat(self.file).st_size > 0
            if out.exists() and not overwrite and not (resume and is_begun):  # now that no other process writes it
                if not is_begun:
                    self.path.unlink()
                raise FastDMError(f"{out} is there already: another process has packed it meanwhile")
            self._begin(resume)
        except BaseException:
            os.close(self.file)
            raise

    def __enter__(self) -> "Partial":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.journal.close()
        os.close(self.file)
        if error is not None and self.path.exists():
            error.add_note(f"what is packed so far is in {self.path}")

    def fill(self, workers: int, on_error: OnError, progress: bool) -> None:
        """Decode every image into its place."""
        total = self.images.total
        blocks = [block for block in range(0, total, _BLOCK) if block not in self.done]
        done = total - sum(min(_BLOCK, total - block) for block in blocks)
        bar = Progress("pack", total, start=done, unit="images") if progress else contextlib.nullcontext()
        if on_error == "raise" and self.skipped:
            self._raise(*min(self.skipped.items()))
        with ThreadPoolExecutor(workers) as threads, bar as shown:
            try:
                for block in blocks:
                    stop = min(block + _BLOCK, total)
                    self._fill_block(block, stop, threads, on_error)
                    done += stop - block
                    if shown is not None:
                        shown.update(done)
            except BaseException:
                threads.shutdown(cancel_futures=True)
                raise

    def finish(self, workers: int) -> None:
        """Close the gaps of skipped images, add what describes the images, and give the file its name."""
        kept, offsets = self._kept()
        counts = {part: len(index) for part, index in kept.items()}
        if self.skipped:
            self.journal_path.unlink()  # once images move, its blocks are no longer where it says
            self._close_gaps()
        images_end = self.images_at + sum(counts.values()) * self.images.image_bytes
        os.ftruncate(self.file, images_end)
        pixels = torch.frombuffer(map_file(self.file, images_end), dtype=torch.uint8, offset=self.images_at)
        parts = dict(zip(counts, torch.split(pixels.view(-1, *self.images.shape), [*counts.values()]), strict=True))

        skipped = json.dumps([[self.images.label(i), error] for i, error in sorted(self.skipped.items())]).encode()
        skipped = skipped.ljust(len(skipped) + -(images_end + len(skipped)) % 8)  # aligns the int64 tensors behind it
        small = {f"{PARTS[part]}class_offsets": offsets[part] for part in parts}
        small |= {
            f"{PARTS[part]}class_crc32": torch.tensor(class_crcs(parts[part], offsets[part], workers)) for part in parts
        }
        small |= {f"{PARTS[part]}source_index": kept[part] for part in parts}
        _write(self.file, skipped + b"".join(tensor.numpy().tobytes() for tensor in small.values()), images_end)

        mean, std = self.images.normalisation or normalisation(self.images.name, parts["train"])
        metadata, tensors = self._header(counts, len(skipped), mean, std)
        small["skipped"] = torch.frombuffer(bytearray(skipped), dtype=torch.uint8)
        of = {name: SUMMED[name.removeprefix("test_")] for name in small}
        metadata["index_crc32"] = index_crc32({name: small[name] for name in small if of[name] == "index"})
        metadata["checksum"] = checksum(
            metadata,
            place(tensors, self.images_at),
            {name: small[name] for name in small if of[name] == "described"},
        )
        _write(self.file, header_bytes(metadata, tensors, self.images_at), 0)
        os.fsync(self.file)
        os.replace(self.path, self.out)
        self.journal_path.unlink(missing_ok=True)
        _sync_folder(self.out.absolute().parent)

    # --- beginning

    def _begin(self, resume: bool) -> None:
        # The header, whose length names of the set and of the classes have a part in, says where images begin.
        plan = {"plan": self.images.fingerprint, "images_at": self.images_at}
        whole = self.images_at + self.images.bytes
        lines = self._journal_lines() if resume else []
        if lines and lines[0] != plan:
            raise FastDMError(
                f"{self.path} was started with different files or settings and cannot be resumed; start over without "
                "--resume"
            )
        if lines and os.fstat(self.file).st_size >= whole:  # else its blocks are gone
            for entry in lines[1:]:
                self.done.add(entry["block"])
                self.skipped |= {int(i): error for i, error in entry["skipped"].items()}
            self.journal = self.journal_path.open("a", encoding="utf-8")
            return
        self.journal_path.unlink(missing_ok=True)  # before the blocks that it lists
        os.ftruncate(self.file, 0)
        try:
            os.posix_fallocate(self.file, 0, min(whole, 2**63 - 1))  # too large for any disk is no OverflowError
        except OSError:
            self.path.unlink()
            raise
        self.journal = self.journal_path.open("w", encoding="utf-8")
        self._log(plan)

    def _journal_lines(self) -> list[dict[str, Any]]:
        """What the journal says: the plan, then blocks. A damaged line is left out: its block is packed again."""
        entries: list[dict[str, Any]] = []
        lines = self.journal_path.read_bytes().splitlines(keepends=True) if self.journal_path.is_file() else []
        for number, line in enumerate(lines, 1):
            entry = _checked_entry(line)
            if entry is not None:
                entries.append(entry)
            elif number < len(lines) or line.endswith(b"\n"):  # else a last line cut short, as a kill leaves it
                again = "all is packed again" if number == 1 else "its images are packed again"
                self.images.tally.say(f"line {number} of {self.journal_path} is damaged: {again}")
            if not entries:  # no plan: nothing says what the blocks are of
                return []
        return entries

    def _log(self, entry: dict[str, Any]) -> None:
        text = json.dumps(entry)
        self.journal.write(f"{zlib.crc32(text.encode()):08x} {text}\n")
        self.journal.flush()

    def _header(
        self, counts: dict[str, int], skipped_bytes: int, mean: Sequence[float], std: Sequence[float]
    ) -> tuple[dict[str, str], dict[str, tuple[str, tuple[int, ...]]]]:
        """Metadata and tensors, in the order of the file."""
        made_by = {package: version(package) for package in ("fastdm", "pillow")}
        if self.images.settings["decoder"] == "simplejpeg":
            made_by["simplejpeg"] = version("simplejpeg")
        metadata = {
            "format": FORMAT,
            "version": ".".join(map(str, VERSION)),
            # Readers of safetensors refuse what is not Unicode, as a folder's name need not be.
            "name": self.images.name.encode(errors="backslashreplace").decode(),
            "classes": json.dumps(self.images.class_names),
            "mean": json.dumps(list(mean)),
            "std": json.dumps(list(std)),
            **self.images.settings,
            "versions": json.dumps(made_by),
            "index_crc32": str(2**32 - 1),  # the longest; both follow from what is written
            "checksum": str(2**32 - 1),
        }
        classes = len(self.images.class_names)
        tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
        tensors |= {f"{PARTS[part]}images": ("U8", (n, *self.images.shape)) for part, n in counts.items()}
        tensors["skipped"] = ("U8", (skipped_bytes,))
        tensors |= {f"{PARTS[part]}class_offsets": ("I64", (classes + 1,)) for part in counts}
        tensors |= {f"{PARTS[part]}class_crc32": ("I64", (classes,)) for part in counts}
        tensors |= {f"{PARTS[part]}source_index": ("I64", (n,)) for part, n in counts.items()}
        return metadata, tensors

    def _room_for_header(self) -> int:
        """Where the images begin: behind a header with the longest numbers that it may come to hold."""
        channels = self.images.shape[0]
        longest = [-2 / 3 * 1e-5] * channels
        counts = {part: sum(c) for part, c in self.images.counts.items()}
        header = header_bytes(*self._header(counts, 10**12, longest, longest), 8)
        return -(-len(header) // PAGE) * PAGE

    # --- decoding

    def _fill_block(self, block: int, stop: int, threads: ThreadPoolExecutor, on_error: OnError) -> None:
        tasks = [
            threads.submit(self._fill_task, begin, min(begin + _TASK, stop), on_error)
            for begin in range(block, stop, _TASK)
        ]
        skipped = {i: error for task in tasks for i, error in task.result().items()}
        os.fdatasync(self.file)
        self._log({"block": block, "skipped": skipped})
        self.skipped |= skipped

    def _fill_task(self, begin: int, stop: int, on_error: OnError) -> dict[int, str]:
        """Decode and write some images; returns the errors of those that could not be decoded."""
        pixels = np.zeros((stop - begin, *self.images.shape), dtype=np.uint8)
        skipped = {}
        for i in range(begin, stop):
            try:
                pixels[i - begin] = self.images.read(i)
            except Exception as error:  # Pillow's decoders raise many kinds
                if is_exhausted(error):
                    raise
                if on_error == "raise":
                    self._raise(i, str(error), error)
                skipped[i] = str(error)
        _write(self.file, pixels.data.cast("B"), self.images_at + begin * self.images.image_bytes)
        return skipped

    def _raise(self, i: int, error: str, cause: Exception | None = None) -> NoReturn:
        raise FastDMError(
            f"{self.images.label(i)} cannot be decoded ({error}); fix or remove it, or skip such images with "
            "on_error='skip'"
        ) from cause

    # --- finishing

    def _kept(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Which images of each part are left, and their class offsets."""
        kept, offsets, first = {}, {}, 0
        classes = len(self.images.class_names)
        for part, counts in self.images.counts.items():
            count = sum(counts)
            keep = torch.ones(count, dtype=torch.bool)
            keep[[i - first for i in self.skipped if first <= i < first + count]] = False
            labels = torch.repeat_interleave(torch.arange(classes), torch.tensor(counts))[keep]
            sizes = torch.bincount(labels, minlength=classes)
            if part == "train" and (sizes == 0).any():
                empty = self.images.class_names[int((sizes == 0).nonzero()[0])]
                raise FastDMError(f"class {empty!r} would end without training images: none of them could be decoded")
            kept[part] = keep.nonzero().flatten()
            offsets[part] = torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)])
            first += count
        return kept, offsets

    def _close_gaps(self) -> None:
        """Move the images behind each skipped one towards the front."""
        gaps = [*sorted(self.skipped), self.images.total]
        size = self.images.image_bytes
        to = self.images_at + gaps[0] * size
        for gap, following in pairwise(gaps):
            begin, end = self.images_at + (gap + 1) * size, self.images_at + following * size
            for at in range(begin, end, _PIECE):
                moved = os.pread(self.file, min(_PIECE, end - at), at)
                _write(self.file, moved, to)
                to += len(moved)


def _checked_entry(line: bytes) -> dict[str, Any] | None:
    """The entry of a line of the journal, None if its checksum does not match."""
    written, _, text = line.rstrip(b"\n").partition(b" ")
    if written != b"%08x" % zlib.crc32(text):
        return None
    entry: dict[str, Any] = json.loads(text)
    return entry


def _write(file: int, data: bytes | memoryview, at: int) -> None:
    left = memoryview(data)
    while left:
        written = os.pwrite(file, left, at)
        left, at = left[written:], at + written


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
