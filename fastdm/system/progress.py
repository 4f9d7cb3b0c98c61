"""Progress of long work: a bar with rate and time left on a terminal, JSON lines elsewhere."""

import json
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from fastdm.system.streams import on_terminal
from fastdm.system.text import printable

SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Shows how far a loop of `total` iterations is, as a context manager; `start` of them were done before."""

    def __init__(self, what: str, total: int, *, start: int = 0, unit: str = "it") -> None:
        self._what = what
        self._total = total
        self._start = start
        self._unit = unit
        self._began = self._last_line = time.monotonic()
        self._console = Console()
        self._bar: RichProgress | None = None
        self._task = TaskID(0)

    def __enter__(self) -> "Progress":
        if on_terminal():
            self._bar = RichProgress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[count]}", markup=False),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(compact=True),
                TextColumn("{task.fields[values]}"),
                console=self._console,
            )
            self._task = self._bar.add_task(
                self._what, total=self._total, completed=self._start, count="", rate="", values=""
            )
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def start_clock(self) -> None:
        """Timing starts here, excluding setup."""
        self._began = time.monotonic()

    def update(self, done: int, where: str = "", **values: float) -> None:
        """`done` iterations are complete, including those before `start`; values: shown with them, such as the loss.

        where: how far that is in words, in place of the bare numbers.
        """
        now = time.monotonic()
        rate = (done - self._start) / max(now - self._began, 1e-9)
        if self._bar is not None:
            shown = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
            count = where or f"{done}/{self._total}"
            self._bar.update(self._task, completed=done, count=count, rate=_rate(rate, self._unit), values=shown)
        elif done == self._total or now - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = now
            line = {
                "progress": self._what,
                "done": done,
                "total": self._total,
                **({"where": where} if where else {}),
                **values,
                f"{self._unit}_per_second": round(rate, 4),
                "seconds_left": round((self._total - done) / rate, 1) if rate else None,
            }
            print(json.dumps(line), flush=True)

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        if self._bar is not None:
            self._bar.console.print(printable(text), highlight=False, markup=False)
        else:
            print(json.dumps({"progress": self._what, "note": text}), flush=True)


def _rate(rate: float, unit: str) -> str:
    return f"{rate:.1f} {unit}/s" if rate >= 1 else f"{1 / max(rate, 1e-9):.1f} s/{unit}"
