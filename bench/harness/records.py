"""Results as data: one JSON file per suite and machine under `bench/results/`, with what is needed to trust it.

A record holds one run of one command; `SCHEMA` says what must be in it, and a test checks every committed file. It also
holds a hash of the rooms whose code it measured, so that a report can say which records are stale.
"""

import datetime
import hashlib
import json
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch

from bench.harness import machine
from bench.harness.machine import REPOSITORY

Row = dict[str, Any]
Result = dict[str, Any]
Column = tuple[str, Callable[[Row], str]]

FOLDER = REPOSITORY / "bench" / "results"
STEP = ("csrc", "kernels", "augmentation", "data", "networks", "objectives", "condensation", "system")
"""The rooms that an iteration runs through."""

_SOURCES = {".py", ".cpp", ".h"}
# Modules that belong to a room and have no folder of that name yet.
_LOOSE = {
    "condensation": ("settings", "plan", "step", "build", "loop"),
    "data": ("real",),
    "objectives": ("matching",),
    "system": ("graph", "native", "files", "progress"),
}


@dataclass(frozen=True)
class Suite:
    """A kind of record: its table and plots.

    name: of its files, and of the block that README.md quotes.
    title, text: of its section in RESULTS.md.
    rooms: the code that it measures, folders of the repository or of `fastdm/`.
    columns: header and cell of its table; a column that is empty in every row is left out.
    render, quote: make its table in RESULTS.md and the one in README.md from the rows, in place of the columns.
    slower: says for which baseline a row is the slower one, in words, or nothing.
    plots: name of a plot and its drawing, which returns None where there is nothing to draw.
    everywhere: whether its results are the same on every machine.
    """

    name: str
    title: str
    text: str
    rooms: tuple[str, ...]
    columns: Sequence[Column] = ()
    render: Callable[[Sequence[Row]], str] | None = None
    quote: Callable[[Sequence[Row]], str] | None = None
    slower: Callable[[Row], str] | None = None
    plots: Mapping[str, Callable[[Result], Any]] = field(default_factory=dict)
    everywhere: bool = False

    def load(self) -> list[Result]:
        """Its records, one of each machine."""
        pattern = f"{self.name}.json" if self.everywhere else f"{self.name}--*.json"
        return [json.loads(path.read_text()) for path in sorted(folder().glob(pattern))]


_SPREAD = {
    "type": "object",
    "required": ["n", "median", "p20", "p80"],
    "properties": {"n": {"type": "integer", "minimum": 1}},
    "additionalProperties": {"type": "number"},
}


def _unless(condition: dict[str, Any], then: dict[str, Any]) -> dict[str, Any]:
    (name,) = condition
    return {"if": {"required": [name], "properties": condition}, "then": then}


_ROW: dict[str, Any] = {
    "type": "object",
    "required": ["name"],
    "properties": {
        **{name: {"type": "string"} for name in ("name", "failure", "note")},
        **{name: {"type": "number"} for name in ("error", "tolerance", "median_error", "median_tolerance")},
        "seconds": {"type": "object", "additionalProperties": _SPREAD},
        "correct": {"type": "boolean"},
    },
    "allOf": [
        # A speed stands next to a check only where the check is green,
        _unless({"correct": {"const": False}}, {"not": {"required": ["seconds"]}}),
        # and more than the peak only with the reason.
        *(
            _unless({f"percent_of_{peak}": {"exclusiveMinimum": 100}}, {"required": ["note"]})
            for peak in ("copy", "matmul")
        ),
    ],
}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["schema", "suite", "command", "commit", "code", "date", "machine", "settings", "rows"],
    "additionalProperties": False,
    "properties": {
        "schema": {"const": 1},
        "suite": {"type": "string", "pattern": "^[a-z_]+$"},
        "command": {"type": "string"},
        "commit": {"type": "string", "pattern": "^[0-9a-f]{7,40}(-dirty)?$"},
        "code": {"type": "object", "additionalProperties": {"type": "string", "pattern": "^([0-9a-f]{12}|absent)$"}},
        "date": {"type": "string", "format": "date-time"},
        "machine": {
            "type": "object",
            "required": ["device", "cpu", "cores", "memory_gib", "load", "system", "versions"],
            "properties": {"versions": {"type": "object"}, "cores": {"type": "integer"}, "load": {"type": "number"}},
        },
        "settings": {"type": "object"},
        "rows": {"type": "array", "minItems": 1, "items": _ROW},
    },
}


def save(suite: Suite, rows: Sequence[Row], settings: Mapping[str, Any], device: str = "cpu") -> Path:
    """Write a suite's rows in place of those of an earlier run on this machine."""
    about = machine.describe(device)
    result = {
        "schema": 1,
        "suite": suite.name,
        "command": machine.command(),
        "commit": machine.commit(),
        # On a GPU, the C++ code is not part of what runs.
        "code": {room: room_hash(room) for room in suite.rooms if room != "csrc" or device == "cpu"},
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": about,
        "settings": dict(settings),
        "rows": list(rows),
    }
    name = (
        suite.name
        if suite.everywhere
        else f"{suite.name}--{machine.slug(about['cpu'])}--{machine.slug(about['device'])}"
    )
    path = folder() / f"{name}.json"
    write(path, result)
    return path


def write(path: Path, result: Result) -> None:
    """Write JSON with a line for every row, so that a change of one shows as one; whole or not at all."""
    about = json.dumps({key: value for key, value in result.items() if key != "rows"}, indent=1).removesuffix("\n}")
    rows = ",\n".join("  " + json.dumps(row, ensure_ascii=False) for row in result["rows"])
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".partial")
    temporary.write_text(f'{about},\n "rows": [\n{rows}\n ]\n}}\n')
    temporary.replace(path)


class Recorder:
    """The rows of one run, printed and saved as they come."""

    def __init__(self, suite: Suite, settings: Mapping[str, Any], device: str = "cpu") -> None:
        self.rows: list[Row] = []
        self._to = suite, settings, device

    def add(self, row: Row, measure: Callable[[], Row] | None = None) -> Row:
        """Keep a row, with what `measure` returns or, so that the other rows are still measured, how it failed."""
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
        suite, settings, device = self._to
        return save(suite, self.rows, settings, device)


def failure(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:400]


def folder() -> Path:
    """Where records are written and read: the environment variable FASTDM_RESULTS, else `bench/results`."""
    return Path(os.environ.get("FASTDM_RESULTS", FOLDER)).resolve()


def changed(result: Result) -> list[str]:
    """The measured rooms whose code is no longer what it was when the record was made."""
    return [room for room, before in result["code"].items() if room_hash(room) != before]


@cache
def room_hash(room: str) -> str:
    """Hash of the contents of a room's source files, whatever they are called."""
    contents = [file.read_bytes() for file in room_files(room)]
    return content_hash(contents) if contents else "absent"


def content_hash(contents: Sequence[bytes]) -> str:
    digests = sorted(hashlib.sha256(content).digest() for content in contents)
    return hashlib.sha256(b"".join(digests)).hexdigest()[:12]


def room_files(room: str) -> list[Path]:
    """The source files of a room: a folder or module of `fastdm/`, or a folder of the repository."""
    package = REPOSITORY / "fastdm"
    place = package / room if (package / room).is_dir() else REPOSITORY / room
    modules = [package / f"{name}.py" for name in (room, *_LOOSE.get(room, ()))]
    return [file for file in (*sorted(place.rglob("*")), *modules) if file.suffix in _SOURCES and file.is_file()]


def spread(values: Sequence[float]) -> dict[str, float | int]:
    """n, median, 20th and 80th percentile."""
    ordered = sorted(values)
    if len(ordered) == 1:
        return {"n": 1, "median": ordered[0], "p20": ordered[0], "p80": ordered[0]}
    fifths = statistics.quantiles(ordered, n=5, method="inclusive")
    return {"n": len(ordered), "median": statistics.median(ordered), "p20": fifths[0], "p80": fifths[3]}


def spreads(times: Mapping[str, Sequence[float]]) -> dict[str, dict[str, float | int]]:
    return {name: spread(values) for name, values in times.items()}


def peaks(device: torch.device) -> dict[str, float]:
    """The peaks recorded for this machine and device, by row name: bytes or FLOPs per second; may be empty."""
    about = machine.describe(str(device))
    return peaks_of({"machine": about})


def peaks_of(result: Result) -> dict[str, float]:
    """The peaks of the machine that a record was made on."""
    return {
        row["name"]: row["gb_per_s"] * 1e9 if "gb_per_s" in row else row["tflop_per_s"] * 1e12
        for row in same_machine(result, "peaks")
    }


def same_machine(result: Result, suite: str) -> list[Row]:
    """Another suite's rows from the machine that a record was made on."""
    others = [json.loads(path.read_text()) for path in sorted(folder().glob(f"{suite}--*.json"))]
    keys = ("cpu", "device")
    return [row for other in others if _are(other, result, keys) for row in other["rows"]]


def _are(one: Result, other: Result, keys: Sequence[str]) -> bool:
    return all(one["machine"][key] == other["machine"][key] for key in keys)
