"""Writing files so that a reader never meets half of one."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fastdm.errors import FastDMError


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; on success it is synced to disk and renamed to `path`, else removed."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


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
