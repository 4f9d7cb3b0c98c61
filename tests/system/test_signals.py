"""Signals wait until a piece of work has ended."""

import signal
import threading

import pytest

from fastdm.system.signals import deferred


@pytest.mark.parametrize("count", [1, 2, 50])
def test_signals_are_heeded_once_after_the_block(count: int) -> None:
    done = []

    def work() -> None:
        with deferred():
            for number in range(count):
                signal.raise_signal(signal.SIGINT)
                done.append(number)

    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            work()
        assert done == list(range(count))
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_signal_that_comes_as_the_block_ends_leaves_no_signal_unheeded(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may come when some of the handlers are back in their places, and the others are not."""
    heeded: list[int] = []
    set_handler = signal.signal
    before = set_handler(signal.SIGTERM, lambda number, frame: heeded.append(number))

    def interrupted(number: int, handler: object) -> object:
        replaced = set_handler(number, handler)  # type: ignore[arg-type]
        if handler is signal.default_int_handler:
            signal.raise_signal(signal.SIGINT)
        return replaced

    try:
        with pytest.raises(KeyboardInterrupt), deferred():
            monkeypatch.setattr(signal, "signal", interrupted)
        signal.raise_signal(signal.SIGTERM)
        assert heeded == [signal.SIGTERM]
    finally:
        set_handler(signal.SIGTERM, before)


def test_an_error_of_the_block_comes_first() -> None:
    def fail() -> None:
        with deferred():
            signal.raise_signal(signal.SIGINT)
            raise ValueError("an error")

    with pytest.raises(ValueError, match="an error"):
        fail()


def test_what_is_ignored_stays_so_and_other_threads_are_left_alone() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with deferred():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)
    results: list[bool] = []

    def elsewhere() -> None:
        with deferred():
            results.append(True)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert results == [True]
