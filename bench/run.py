"""Benchmarks one after the other, each in a process of its own with a time budget.

A crash, a hang or a run that is cut short leaves what the others found. Into the folder of the results go the suites'
files, one of the stages themselves (what ran, for how long, with which end) and ``logs/STAGE.log``.
"""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import results


@dataclasses.dataclass(frozen=True)
class Stage:
    """arguments: of python; seconds: its time budget; least: below this there is no use in starting it; fine: exit
    statuses that mean success."""

    name: str
    arguments: tuple[str, ...]
    seconds: float
    least: float = 10.0
    fine: tuple[int, ...] = (0,)


def run_all(
    suite: str,
    stages: Sequence[Stage],
    seconds: float,
    settings: dict[str, Any],
    device: str,
    environment: Mapping[str, str],
    where: Path = results.REPOSITORY,
) -> int:
    """Run the stages until the time is used up; the record is saved after each. Returns 0 if all of them went well."""
    rows: list[dict[str, Any]] = []
    for row in _rows(stages, seconds, environment, where):
        rows.append(row)
        results.save(suite, rows, settings, device)
    return 0 if all(row["end"] == "done" for row in rows) else 1


def report_stage() -> Stage:
    """The page of all results: beside the committed ones, or among others."""
    out = results.folder()
    return Stage("report", ("-m", "bench.report", "--to", str(out.parent if out == results.FOLDER else out)), 30)


def _rows(
    stages: Sequence[Stage], seconds: float, environment: Mapping[str, str], where: Path
) -> Iterator[dict[str, Any]]:
    deadline = time.monotonic() + seconds
    logs = results.folder() / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    for stage in stages:
        # The report at the end is owed its time.
        left = deadline - time.monotonic() - (0 if stage is stages[-1] else stages[-1].seconds)
        row: dict[str, Any] = {
            "name": stage.name,
            "command": " ".join(("python", *map(results.relative, stage.arguments))),
        }
        if left < stage.least:
            row |= {"end": "no time left", "took_seconds": 0.0}
        else:
            row |= _run(stage, min(stage.seconds, left), logs / f"{stage.name}.log", environment, where)
        print(f"{stage.name:12} {row['took_seconds']:6.1f} s  {row['end']}", flush=True)
        yield row


def _run(stage: Stage, seconds: float, log: Path, environment: Mapping[str, str], where: Path) -> dict[str, Any]:
    start = time.monotonic()
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, *stage.arguments],
            cwd=where,
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            end = "done" if process.wait(seconds) in stage.fine else f"failed with {process.returncode}"
        except subprocess.TimeoutExpired:
            end = f"stopped after {seconds:.0f} s"
        finally:
            if process.poll() is None:
                # With its compiler's workers, which share its process group.
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    lines = [line for line in _shortened(log).splitlines() if line.strip()]
    return {"end": end, "took_seconds": round(time.monotonic() - start, 1), "said": lines[-1][:200] if lines else ""}


def _shortened(log: Path, limit: int = 400_000) -> str:
    """The log, of an endless one the beginning and the end."""
    text = log.read_text(errors="replace")
    if len(text) > limit:
        text = f"{text[: limit // 2]}\n… {len(text) - limit} characters left out …\n{text[-limit // 2 :]}"
        log.write_text(text)
    return text
