"""Results as data: one JSON file per suite and machine under `bench/results/`, with what is needed to trust it.

A record holds one run of one command, and a hash of each room whose code it measured, so that a report can say which
records are stale. `tests/bench/schema.py` says what must be in it, and a test checks every committed file.
"""

import datetime
import hashlib
import json
import os
import statistics
from argparse import Namespace
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch

from bench.harness import machine
from bench.harness.machine import REPOSITORY

Row = dict[str, Any]
Result = dict[str, Any]
Table = str | Callable[[Sequence[Row]], str]
Spread = dict[str, float]
Rows = Iterable[Row | tuple[Row, Callable[[], Row]]]
"""Whole rows, and rows whose rest is still to be measured."""

FOLDER, SMOKE_FOLDER = REPOSITORY / "bench" / "results", REPOSITORY / "build" / "smoke"
STEP = ("csrc", "kernels", "augmentation", "data", "networks", "objectives", "condensation", "system")
"""The rooms that an iteration runs through."""


@dataclass(frozen=True)
class Suite:
    """A kind of record, its table and its plots.

    name: of its files, and of the block that README.md quotes. title, text: of its section in RESULTS.md.
    rooms: the code that it measures, folders of the repository or of `fastdm/`, or a module of the latter.
    table: the columns of its table, or what makes it, as `cells.table` takes them. quoted: the same of the table that
        README.md shows, of rows that are right, if that is another.
    slower: keys of ratios, below 1 where a row is slower than a baseline, and that baseline: "without it".
    plots: name of a plot and its drawing, which returns None where there is nothing to draw.
    everywhere: whether its results are the same on every machine.
    keys: by these a row replaces one of an earlier run, whose other rows stay; without any, a run replaces them all.
    """

    name: str
    title: str
    text: str
    rooms: tuple[str, ...]
    table: Table
    quoted: Table = ""
    slower: Mapping[str, str] = field(default_factory=dict)
    plots: Mapping[str, Callable[[Result], Any]] = field(default_factory=dict)
    everywhere: bool = False
    keys: tuple[str, ...] = ()

    def load(self) -> list[Result]:
        """Its records, one of each machine."""
        return load(self.name if self.everywhere else f"{self.name}--*")


class Recorder:
    """The rows of one run, printed and saved as they come, in place of those of an earlier run on this machine.

    rows: those so far, after the ones that are kept (see `Suite.keys`).
    """

    def __init__(self, suite: Suite, settings: Mapping[str, Any], device: torch.device | str = "cpu") -> None:
        self._suite, self._settings, self._device = suite, settings, str(device)
        self._folder = folder(bool(settings.get("smoke")))
        self.rows = same_machine(machine.describe(device), suite.name, self._folder) if suite.keys else []

    def add(self, row: Row, measure: Callable[[], Row] | None = None) -> Row:
        """Keep a row, with what `measure` returns or, so that the other rows are still measured, how it failed."""
        if keys := self._suite.keys:
            self.rows = [earlier for earlier in self.rows if any(earlier.get(key) != row.get(key) for key in keys)]
        self.rows.append(row)
        if measure is not None:
            try:
                row |= measure()
            except Exception as error:
                row["failure"] = failure(error)
        print({key: value for key, value in row.items() if key != "losses"}, flush=True)
        self.save()
        return row

    def save(self) -> Path:
        """Write the record with a line for every row, so that a change of one shows as one; whole or not at all."""
        suite, described = self._suite, machine.describe(self._device)
        about = {
            "schema": 1,
            "suite": suite.name,
            "command": machine.command(),
            "commit": machine.commit(),
            "code": {room: room_hash(room) for room in _rooms(suite, described["device"])},
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "machine": described,
            "settings": dict(self._settings),
        }
        rows = ",\n".join("  " + json.dumps(row, ensure_ascii=False) for row in self.rows)
        where = [] if suite.everywhere else [machine.slug(described[key]) for key in ("cpu", "device")]
        path = self._folder / f"{'--'.join([suite.name, *where])}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".partial")
        temporary.write_text(json.dumps(about, indent=1).removesuffix("\n}") + f',\n "rows": [\n{rows}\n ]\n}}\n')
        return temporary.replace(path)


def record(suite: Suite, options: Namespace, rows: Callable[[Namespace], Rows], **settings: Any) -> None:
    """Measure and keep the rows that a command with these options has."""
    recorder = Recorder(suite, {"smoke": options.smoke, **settings}, getattr(options, "device", "cpu"))
    for found in rows(options):
        recorder.add(*found) if isinstance(found, tuple) else recorder.add(found)


def folder(smoke: bool = False) -> Path:
    """Where records are: the environment variable FASTDM_RESULTS says it, else `bench/results`, or `build/smoke` for
    those of a smoke run."""
    return Path(os.environ.get("FASTDM_RESULTS", SMOKE_FOLDER if smoke else FOLDER)).resolve()


def load(name: str, where: Path | None = None) -> list[Result]:
    return [json.loads(path.read_text()) for path in sorted((where or folder()).glob(f"{name}.json"))]


def same_machine(about: Mapping[str, Any], suite: str, where: Path | None = None) -> list[Row]:
    """A suite's rows from the machine and device that are described."""
    results = load(f"{suite}--*", where)
    found = [each for each in results if all(each["machine"][key] == about[key] for key in ("cpu", "device"))]
    return [row for result in found for row in result["rows"]]


def peaks(about: Mapping[str, Any]) -> dict[str, float]:
    """The peaks recorded for a machine, by row name: bytes or FLOPs per second; may be empty."""
    rows = same_machine(about, "peaks")
    return {row["name"]: row.get("gb_per_s", 0) * 1e9 or row["tflop_per_s"] * 1e12 for row in rows}


def changed(suite: Suite, result: Result) -> list[str]:
    """The measured rooms whose code is no longer what it was when the record was made."""
    return [room for room in _rooms(suite, result["machine"]["device"]) if room_hash(room) != result["code"].get(room)]


def _rooms(suite: Suite, device: str) -> list[str]:
    # On a GPU, the C++ code is not part of what runs.
    return [room for room in suite.rooms if room != "csrc" or device == "cpu"]


@cache
def room_hash(room: str) -> str:
    """Hash of the contents of a room's source files, whatever they are called; a room may be a single file."""
    package = REPOSITORY / "fastdm" / room
    place = package if package.is_dir() else REPOSITORY / room
    files = [place, package.with_suffix(".py"), *place.rglob("*")]
    sources = [file for file in files if file.suffix in (".py", ".cpp", ".h") and file.is_file()]
    digests = sorted(hashlib.sha256(file.read_bytes()).digest() for file in sources)
    return hashlib.sha256(b"".join(digests)).hexdigest()[:12] if digests else "absent"


def judged(error: float, tolerance: float, median: float | None = None, median_tolerance: float = 0.0) -> Row:
    """An error, and where there is one a median error, with what they may be; whether they are within (NaN is not)."""
    row: Row = {"error": error, "tolerance": tolerance, "correct": error <= tolerance}
    if median is not None:
        row |= {"median_error": median, "median_tolerance": median_tolerance}
        row["correct"] &= median <= median_tolerance
    return row


def value(row: Row, key: str) -> Any:
    """What a row holds under a key, or under "peak_mib.public" in a dict of it; None where there is nothing."""
    found: Any = row
    for part in key.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return found


def spread(values: Sequence[float]) -> Spread:
    """n, median, 20th and 80th percentile."""
    ordered = sorted(values)
    fifths = statistics.quantiles(ordered, n=5, method="inclusive") if len(ordered) > 1 else ordered * 4
    return {"n": len(ordered), "median": statistics.median(ordered), "p20": fifths[0], "p80": fifths[3]}


def spreads(times: Mapping[str, Sequence[float]]) -> dict[str, Spread]:
    return {name: spread(values) for name, values in times.items()}


def failure(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:400]
