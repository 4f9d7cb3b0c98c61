"""Standard output and standard error: who reads them, and what else is written to them."""

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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


class Output(io.TextIOWrapper):
    """Standard output for a program that goes on when nobody reads it any more, or its disk is full.

    The first failure is a sentence on standard error, and is kept as `lost`; what follows goes nowhere. Characters that
    the encoding lacks are written as escapes.
    """

    lost: OSError | None = None

    def __init__(self, stream: io.TextIOWrapper) -> None:
        self._stream = stream  # which would close what it shares with this one
        super().__init__(
            stream.buffer, stream.encoding, "backslashreplace", line_buffering=stream.isatty(), write_through=False
        )

    def write(self, text: str) -> int:
        with self._kept_quiet():
            super().write(text)
        return len(text)

    def flush(self) -> None:
        with self._kept_quiet():
            super().flush()

    @contextmanager
    def _kept_quiet(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if self.lost is not None:
                return
            self.lost = error
            why = "nobody reads it" if error.errno == errno.EPIPE else error.strerror
            complain(f"the output cannot be written any more ({why}); what is saved in files is not affected")
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())  # what is still buffered, too
            os.close(nowhere)


def complain(sentence: str) -> None:
    """A sentence on standard error, if there is one."""
    if sys.stderr is None:  # closed; print would take the output instead
        return
    with suppress(OSError):
        print(f"fastdm: {sentence}", file=sys.stderr, flush=True)


def open_standard_streams() -> None:
    """Give a process that was started without some of the three standard streams empty ones.

    The next file that it opens would otherwise take their place, and get what is printed.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
