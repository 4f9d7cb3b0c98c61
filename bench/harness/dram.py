"""Bytes of memory that kernels move on a GPU, as Nsight Compute counts them."""

import csv
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch

from bench.harness.machine import REPOSITORY
from bench.harness.records import Row
from fastdm.kernels import uniform

METRICS = {"dram__bytes_read.sum": "read", "dram__bytes_write.sum": "written"}
_OPTIONS = "--csv --print-units base --profile-from-start off --clock-control none --target-processes all"
_MARKER = "uniform_kernel"
"""The kernel that stands in front of those of every call."""


def run_marked(calls: Iterable[Callable[[], object]], device: torch.device) -> None:
    """Run calls, of which the profiler sees the kernels, each behind a marker."""
    key, row = torch.tensor([0, 0], device=device), torch.zeros(1, dtype=torch.int64, device=device)
    for call in calls:
        call()  # compiles, and chooses algorithms
        torch.cuda.synchronize(device)
        torch.cuda.profiler.start()
        uniform(key, row, 1, 0)
        call()
        torch.cuda.synchronize(device)
        torch.cuda.profiler.stop()


def rows(arguments: Sequence[str], least: Mapping[str, int], device: torch.device, seconds: float) -> Iterator[Row]:
    """A row for every call of a python program that calls `run_marked`, or one that says why there are none.

    arguments: python's. least: of the calls in their order, names and the bytes that must move. What was counted within
    `seconds` is kept: ncu then writes what it has.
    """
    if device.type != "cuda":
        yield {"name": "none", "note": "this device is not a GPU"}
        return
    limit = ["timeout", "--kill-after=10", str(seconds)]
    command = [*limit, "ncu", *_OPTIONS.split(), "--metrics", ",".join(METRICS), sys.executable, *arguments]
    done = subprocess.run(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    found = counted(done.stdout)
    for (name, must), row in zip(least.items(), found, strict=False):
        times = (row["read"] + row["written"]) / must
        yield {"name": name, "bytes": must, **row, "times_least": round(times, 3)}
    if not found:
        words = " ".join(done.stdout.split()[-40:])
        yield {"name": "none", "note": f"Nsight Compute (ncu) counted nothing: {words}"}


def counted(output: str) -> list[Row]:
    """The bytes that the kernels of each call read and wrote, and their number, from what Nsight Compute prints: a line
    of CSV for every kernel and metric."""
    lines = output.splitlines()
    start = next((number for number, line in enumerate(lines) if line.startswith('"ID"')), len(lines))
    found: list[Row] = []
    last = ""
    for line in csv.DictReader(lines[start:]):
        is_first, last = line["ID"] != last, line["ID"]
        if _MARKER in (line["Kernel Name"] or ""):
            found += [{"read": 0.0, "written": 0.0, "kernels": 0}] if is_first else []
        elif found and line["Metric Name"] in METRICS:
            found[-1]["kernels"] += is_first
            found[-1][METRICS[line["Metric Name"]]] += float(line["Metric Value"].replace(",", ""))
    return found
