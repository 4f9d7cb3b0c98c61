"""Writing files so that a reader never meets half of one, and looking at them before they are read."""

import os
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from torch import Tensor

from fastdm.errors import FastDMError


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Give a temporary path next to `path`; on success it is synced to disk and renamed to `path`, else removed."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def writing(path: str | Path) -> Iterator[Path]:
    """`atomic_write` into a folder that is made if absent; FastDMError where nothing can be written."""
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            yield temporary
    except (OSError, SafetensorError) as error:
        raise FastDMError(f"{path} cannot be written: {error}") from error


def make_folder(folder: Path) -> None:
    """Make a folder, if absent, and find out now whether files can be written to it; FastDMError if not."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise FastDMError(f"the folder {folder} cannot be written ({error.strerror}); choose another") from error


def is_zip(path: Path) -> bool:
    """Whether a file is a zip archive, as torch.save writes them; FastDMError if it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(2) == b"PK"
    except OSError as error:
        raise FastDMError(f"{path} cannot be read: {error.strerror}") from error


def crc32(*tensors: Tensor) -> int:
    """CRC-32 of the bytes of contiguous CPU tensors, one after the other."""
    checksum = 0
    for tensor in tensors:
        checksum = zlib.crc32(tensor.detach().numpy().data, checksum)
    return checksum
