"""Write files so that a reader never meets half of one; look at them before they are read; lock them."""

import errno
import fcntl
import itertools
import os
import re
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError

from fastdm.errors import FastDMError
from fastdm.system.text import printable

if TYPE_CHECKING:
    from torch import Tensor


def user_path(path: str | os.PathLike[str]) -> Path:
    """The path that a user wrote, with `~` and `~name` replaced by the home folder where a shell would do it.

    Raises FastDMError for what no file can be called.
    """
    if not isinstance(path, str | os.PathLike):
        raise FastDMError(f"a path is a {type(path).__name__}; it must be a str or a Path")
    path = os.path.expanduser(path)
    if "\0" in path:
        raise FastDMError(f"{printable(path)} has a zero byte in its name, which no file can have")
    return Path(path)


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Give a temporary path next to `path`; on success it is synced to disk and renamed to `path`, else removed.

    A link is followed. The file gets the permissions of the one that it replaces, or of any new file. Raises OSError
    where nothing can be written, also if `path` is there and is not a regular file: a device is not replaced.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    temporary = path.with_name(f".{path.name[:200]}.{os.getpid()}.tmp")
    try:
        temporary.unlink(missing_ok=True)  # of a process that was killed and had the same number
        temporary.touch()
        mode = stat.S_IMODE((path if path.exists() else temporary).stat().st_mode)
        yield temporary
        temporary.chmod(mode)  # whoever wrote it may have replaced it
        sync(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_unfinished(folder: Path) -> None:
    """Remove what `atomic_write` left in a folder where its process was killed; no other may be writing there now."""
    for path in folder.glob(".*.tmp"):
        if re.fullmatch(r"\..+\.\d+\.tmp", path.name):  # as it names them: others are not ours
            path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Wait until the disk has the file's content: only then is it known to have fitted."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


@contextmanager
def writing(path: str | Path) -> Iterator[Path]:
    """`atomic_write`, with `~` expanded, into a folder that is made if absent; FastDMError where that fails."""
    path = user_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            yield temporary
    except (OSError, SafetensorError, RuntimeError) as error:  # RuntimeError: torch.save on a full disk
        raise FastDMError(f"{path} cannot be written: {reason(error)}") from error


def reason(error: Exception) -> str:
    """Why a file cannot be used, in a few words: those of the operating system where it has some."""
    if isinstance(error, SafetensorError) and (number := re.search(r"\(os error (\d+)\)", str(error))):
        return os.strerror(int(number[1]))
    return (isinstance(error, OSError) and error.strerror) or str(error).partition("\n")[0] or type(error).__name__


def make_folder(folder: Path) -> None:
    """Make a folder, if absent, and find out now whether files can be written to it; FastDMError if not."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise FastDMError(f"the folder {folder} cannot be written ({reason(error)}); choose another") from error


@contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Hold the lock file `path` within the block; FastDMError, naming `what`, if another process holds it.

    The lock ends with the process, however that ends. A file system without locks is taken as it is.
    """
    try:
        file = open_locked(path)
    except BlockingIOError as error:
        raise FastDMError(
            f"{what} is in use by another process; wait until it has ended, or choose another folder"
        ) from error
    except OSError as error:
        raise FastDMError(f"{what} cannot be locked with {path} ({reason(error)})") from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # while it is held
        os.close(file)


def open_locked(path: Path) -> int:
    """The file of that path, made if absent, open and locked until it is closed; BlockingIOError if another holds it.

    A file system without locks is taken as it is.
    """
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                os.close(file)
                raise
        try:
            if os.path.samestat(os.fstat(file), os.stat(path)):
                return file
        except FileNotFoundError:
            pass
        os.close(file)  # whoever held it before has removed it: it is no longer the one that others find


def put_aside(path: Path) -> Path:
    """Rename a damaged file so that it is neither read again nor lost; returns its new path."""
    numbers = itertools.count(1)
    aside = path.with_name(f"{path.name}.damaged")
    while aside.exists():
        aside = path.with_name(f"{path.name}.damaged-{next(numbers)}")
    os.replace(path, aside)
    return aside


def is_zip(path: Path) -> bool:
    """Whether a file is a zip archive, as torch.save writes them; FastDMError if it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(2) == b"PK"
    except OSError as error:
        raise FastDMError(f"{path} cannot be read: {error.strerror}") from error


def check_zip(path: Path) -> None:
    """Read a zip archive, in pieces, and compare the CRC-32 of its members, as torch.load does not.

    Raises one of zipfile's errors for a member that is damaged. A CRC-32 of 0 is none: torch can leave it out.
    """
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if member.CRC:
                with archive.open(member) as content:
                    while content.read(1 << 20):
                        pass


def crc32(*tensors: "Tensor", text: str = "") -> int:
    """CRC-32 of the bytes of contiguous CPU tensors, one after the other, then of a text."""
    checksum = 0
    for tensor in tensors:
        checksum = zlib.crc32(tensor.detach().numpy().data, checksum)
    return zlib.crc32(text.encode(), checksum)
