"""Run the product on fake cards of several sizes: `make fake-gpu`. See README.md next to this file.

python -m tests.fakegpu [--record]      --record: write bench/results/fakegpu.json and bench/fakegpu.md
"""

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.fakegpu.build import build

ROOT = Path(__file__).parents[2]
CARDS = [("kinds", 24, 2), ("runs", 4, 2), *(("sets", gib, 1) for gib in (140, 80, 40, 24))]
"""What runs, on cards of how many GiB, and how many of them; the last one is used."""

AT_A_TIME, SECONDS = 2, 400
COLUMNS = ["card", "data", "residence", "chunk_classes", "planned_mib", "peak_mib", "reserved_mib"]
COLUMNS += ["nodes", "launches", "waits"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true")
    record = parser.parse_args().record
    preloaded = ":".join(map(str, build()))
    rows = []
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        for found in pool.map(lambda card: _run_card(preloaded, *card), CARDS):
            rows += found
            for row in found:
                print(
                    f"{row['card']:12} {row['name'].split(': ')[-1]:45} {'; '.join(row['wrong']) or 'ok'}", flush=True
                )
    wrong = sum(bool(row["wrong"]) for row in rows)
    print(f"{len(rows)} checks, {wrong} wrong")
    if record and not wrong:
        _record([row for row in rows if "peak_mib" in row])
    return 1 if wrong else 0


def _run_card(preloaded: str, what: str, gib: int, count: int) -> list[dict[str, Any]]:
    """The rows of a process that sees `count` cards of `gib` GiB; how it ended is one of them if it failed."""
    environment = os.environ | {
        "LD_PRELOAD": preloaded,
        "FAKE_GPU_GIB": str(gib),
        "FAKE_GPU_COUNT": str(count),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "tests.fakegpu.card", what]
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
        rows.append({"name": what, "wrong": [f"{end}: {err[-1000:]}"]})
    card = f"{gib} GiB" + (f", cuda:{count - 1}" if count > 1 else "")
    return [{**row, "card": card, "name": f"{card}: {row['name']}", "data": row["name"]} for row in rows]


def _record(rows: list[dict[str, Any]]) -> None:
    from bench import results

    kept = [{"name": row["name"], **{column: row[column] for column in COLUMNS}} for row in rows]
    results.save("fakegpu", kept, {"cards": [list(card) for card in CARDS]})
    lines = [" | ".join(COLUMNS), " | ".join("---" for _ in COLUMNS)]
    lines += [" | ".join(str(row[column]) for column in COLUMNS) for row in kept]
    table = "\n".join(f"| {line} |" for line in lines)
    (ROOT / "bench" / "fakegpu.md").write_text(
        "# What a step takes on a GPU\n\n"
        "Counted by `python -m tests.fakegpu --record` on cards that do not exist (see tests/fakegpu/README.md): the\n"
        "plan, the allocations, the graph and the launches are real; nothing was computed, and cuDNN's workspaces are\n"
        "missing. reserved: the most that the allocator held; nodes: of an iteration's graph (0: it is streamed);\n"
        f"launches, waits: of the host in an iteration.\n\n{table}\n"
    )


if __name__ == "__main__":
    sys.exit(main())
