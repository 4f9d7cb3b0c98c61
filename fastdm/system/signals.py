"""Let a piece of work end before a signal is heeded."""

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

STOPPING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name))
"""What asks a program to stop: Ctrl-C, a batch system's end of time, a terminal that closes, and its warning before."""


@contextmanager
def deferred() -> Iterator[Sequence[tuple[int, FrameType | None]]]:
    """Hold back the signals that stop a program until the block has ended, however many there are.

    What they would have done, such as raising KeyboardInterrupt, is then done once, unless the block itself raised.
    Those that are ignored, or that end the process at once, stay as they are. Outside the main thread nothing is held
    back: signals never interrupt other threads. Gives what has arrived: numbers and frames.
    """
    arrived: list[tuple[int, FrameType | None]] = []
    if threading.current_thread() is not threading.main_thread():
        yield arrived
        return
    before = {number: handler for number in STOPPING if callable(handler := signal.getsignal(number))}
    holding = True

    def hold(number: int, frame: FrameType | None) -> None:
        if holding:
            arrived.append((number, frame))
        else:  # another signal has come while the handlers before were being set again, and this one stayed
            before[signal.Signals(number)](number, frame)

    try:
        for number in before:
            signal.signal(number, hold)
        yield arrived
    finally:
        holding = False
        for number, handler in before.items():
            signal.signal(number, handler)
    if arrived:
        number, frame = arrived[0]
        before[signal.Signals(number)](number, frame)
