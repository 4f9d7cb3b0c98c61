"""The `fastdm` command: parses, calls, prints."""

import os
import shutil
import signal
import sys
import textwrap
import threading
import time
from types import FrameType
from typing import Any

# What loads slowly is imported once signals are heeded.

UNREADABLE = 1
MISTAKE = 2
SIGNAL = 128
"""Exit codes: output that could not be written, a user's mistake, and what is added to a signal's number."""

SECONDS_TO_STOP = 10.0
"""Further signals in this time change nothing: a batch system or a finger may send several."""

SECONDS_TO_LEAVE = 0.01
"""A destructor ends in this time, before a signal whose exception it has dropped is sent again."""


class _Stopped(BaseException):
    """Ctrl-C, a batch system's end of time, or a terminal that was closed: `number` of the signal."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


def main() -> None:
    """Run the command.

    A user's mistake is one sentence and exit code 2. Ctrl-C, SIGTERM, SIGHUP and SIGUSR1 leave a checkpoint and are
    128 + the signal's number; those that are ignored, such as SIGHUP under nohup, stay so. Output that cannot be
    written does not end a run, but is exit code 1 unless its reader has left.
    """
    from fastdm.errors import FastDMError, OtherRankEnded

    # Where a rank is gone, the others say so in a sentence; PyTorch would add the stack of each.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    try:
        _heed_signals()
        from fastdm.system.streams import Output, open_standard_streams

        open_standard_streams()
        if sys.stdout is not None:
            sys.stdout = Output(sys.stdout)  # type: ignore[arg-type]
        from fastdm.system.memory import within_memory

        try:
            with within_memory("give it more memory, or smaller images, batches and networks"):
                from fastdm.cli.commands import app

                app()
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except FastDMError as error:
        _end(_with_notes(error), MISTAKE, at_once=isinstance(error, OtherRankEnded))
    except _Stopped as stopped:
        _end(_with_notes(stopped, "stopped"), SIGNAL + stopped.number)
    except SystemExit as ended:
        lost = getattr(sys.stdout, "lost", None)
        if lost is not None and not isinstance(lost, BrokenPipeError):
            sys.exit(ended.code or UNREADABLE)
        raise


def _heed_signals() -> None:
    """Let the signals that ask a program to stop raise `_Stopped`, once.

    Python drops an exception that is raised in a destructor or in a weak reference's callback. The signal is then sent
    again, because a batch system sends only one.
    """
    from fastdm.system.signals import STOPPING

    first: float | None = None

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal first
        if first is None or time.monotonic() - first >= SECONDS_TO_STOP:
            first = time.monotonic()
            # An exception of our own: the option parser would end a KeyboardInterrupt in its own way.
            raise _Stopped(number)

    def send_again(number: int) -> None:
        nonlocal first
        first = None
        os.kill(os.getpid(), number)

    def dropped(unraisable: "sys.UnraisableHookArgs") -> None:
        if isinstance(unraisable.exc_value, _Stopped):
            again = threading.Timer(SECONDS_TO_LEAVE, send_again, [unraisable.exc_value.number])
            again.daemon = True
            again.start()
        else:
            before(unraisable)

    before, sys.unraisablehook = sys.unraisablehook, dropped
    for number in STOPPING:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, stop)


def _with_notes(error: BaseException, sentence: str = "") -> str:
    """A sentence, by default the error's own, and what is saved, where its notes say so."""
    saved = "; ".join(getattr(error, "__notes__", ()))
    return f"{sentence or error}; {saved}: continue with --resume" if saved else sentence or str(error)


def _end(sentence: str, code: int, *, at_once: bool = False) -> None:
    """End the process with a sentence on standard error, in lines that a terminal can hold.

    at_once: without the usual farewell, in which PyTorch would wait for a rank that is gone.
    """
    from fastdm.system.streams import complain
    from fastdm.system.text import printable

    text = printable(sentence)
    if sys.stderr is not None and sys.stderr.isatty():
        width = max(40, shutil.get_terminal_size().columns)
        text = textwrap.fill(text, width, initial_indent=" " * 8, subsequent_indent="  ", break_on_hyphens=False)[8:]
    complain(text)
    if at_once:
        if sys.stdout is not None:
            sys.stdout.flush()
        os._exit(code)
    sys.exit(code)


def __getattr__(name: str) -> Any:
    if name == "app":
        from fastdm.cli.commands import app

        return app
    raise AttributeError(f"module 'fastdm.cli' has no attribute {name!r}")
