"""A signal to stop that arrives where Python drops the exception it raises."""

import signal
import threading
import time
from collections.abc import Iterator

import pytest

from tests.cli.test_cli import main


@pytest.fixture
def patient_timers(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Timers start when the event is set, and have ended before SIGTERM can end this process again."""
    begin, timers = threading.Event(), []

    class Timer(threading.Timer):
        def start(self) -> None:
            timers.append(self)
            super().start()

        def run(self) -> None:
            begin.wait()
            super().run()

    monkeypatch.setattr(threading, "Timer", Timer)
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    yield begin
    begin.set()
    for timer in timers:
        timer.join()
    signal.signal(signal.SIGTERM, before)


def test_a_signal_whose_exception_python_drops_is_sent_again(
    patient_timers: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when it arrives in the callback of a weak reference: a batch system sends no second one."""
    left = []

    class Unlucky:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGTERM)
            left.append("not reached")

    def work() -> None:
        Unlucky()
        left.append("here")
        patient_timers.set()
        time.sleep(10)

    monkeypatch.setattr("fastdm.cli.commands.app", work)
    assert main() == 128 + signal.SIGTERM
    assert left == ["here"]
