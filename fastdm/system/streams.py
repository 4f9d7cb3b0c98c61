"""Standard output and standard error: who reads them, and what else is written to them."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def on_terminal() -> bool:
    """Whether people read the output: it then has tables and bars, elsewhere JSON lines.

    Only a terminal counts; FORCE_COLOR and its like colour what a terminal shows, and change no format.
    """
    try:
        return sys.stdout.isatty()
    except (AttributeError, ValueError):  # no output, or a closed one
        return False


@contextmanager
def stderr_to(path: Path | None) -> Iterator[None]:
    """Append what any library prints to standard error within the block to a file; None: leave it as it is."""
    if path is None:
        yield
        return
    try:
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        kept = os.dup(2)
    except OSError:  # not worth a failure
        yield
        return
    sys.stderr.flush()
    os.dup2(file, 2)
    os.close(file)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)
