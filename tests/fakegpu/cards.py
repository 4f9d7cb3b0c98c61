"""Fake cards of several sizes, each in a process of its own in which the two libraries are loaded."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from tests.fakegpu.build import build

ROOT = Path(__file__).parents[2]
AT_A_TIME, SECONDS = 2, 400


class Card(NamedTuple):
    """checks: what runs on it (see card.py); gib: its size; number: how many there are, of which the last is used."""

    checks: str
    gib: int
    number: int = 1

    def __str__(self) -> str:
        return f"{self.gib} GiB" + (f", cuda:{self.number - 1}" if self.number > 1 else "")


CARDS = [Card("kinds", 24, 2), Card("runs", 4, 2), *(Card("sets", gib) for gib in (140, 80, 40, 24))]


def run_all() -> Iterator[dict[str, Any]]:
    """A row for every check on every card. name, card; wrong: what does not hold; the rest as in steps.py."""
    preloaded = ":".join(map(str, build()))
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        for rows in pool.map(lambda card: _run(card, preloaded), CARDS):
            yield from rows


def _run(card: Card, preloaded: str) -> list[dict[str, Any]]:
    environment = os.environ | {
        "LD_PRELOAD": preloaded,
        "FAKE_GPU_GIB": str(card.gib),
        "FAKE_GPU_COUNT": str(card.number),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "tests.fakegpu.card", card.checks]
    process = subprocess.Popen(
        command, env=environment, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        out, err = process.communicate(timeout=SECONDS)
        end = f"ended with {process.returncode}"
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        end = f"stopped after {SECONDS} s"
    rows = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    if process.returncode or not rows:
        rows.append({"name": card.checks, "wrong": [f"{end}: {err[-1000:]}"]})
    return [{**row, "card": str(card)} for row in rows]
