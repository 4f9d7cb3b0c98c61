"""Every benchmark in one command: on a CPU in a quarter of an hour, on a GPU in eight minutes, and in ten what is
reached there.

    python -m bench.run cpu|gpu|accuracy [--data DIR] [--minutes 15] [--only STAGE …] [--out bench/results]

Each stage is a process of its own with a time budget; the most wanted come first, should the time not suffice for all.
A crash, a hang or a run that is cut short leaves what the others found, and what the stage itself had saved. Into --out
go the suites' records, one of the stages (what ran, for how long, with which end), `logs/STAGE.log`, at the end
RESULTS.md with plots, and all of it as one file, `results.tar.gz`.

The environment variable FASTDM_COMMIT names the commit instead of git, FASTDM_DEVICE_NAME the card. `gpu --device
cpu --smoke` runs the same measurements on tiny shapes anywhere. --data: as `fastdm condense --data_path`.
"""

import os
import shlex
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from bench.harness import arguments, cells, machine, records
from bench.harness.machine import REPOSITORY
from bench.harness.records import Recorder, Row, Suite

MINUTES = {"cpu": 15.0, "gpu": 8.0, "accuracy": 10.0}
# Name, seconds at most, command. On a CPU, torch.compile's C++ takes a quarter of a minute for every kernel, and half a
# minute for a network: one that gains and one that does not. The step takes what time is left for as many sizes as fit.
STAGES = {
    "cpu": """
peaks         75  -m bench.peaks {device}
launches      90  -m bench.launches
traffic       60  -m bench.traffic
calls        240  -m bench.calls --seconds 3
augment      120  -m bench.calls augment --threads 1 2 --seconds 1
waterfall    240  -m bench.waterfall {device} --batch_real 64 --seconds 30
kernels       90  -m bench.kernels {device} --no-compile --seconds 60
evaluation    90  -m bench.evaluation {device}
step_compile 120  -m bench.step compile --network ConvNetBN AlexNet
loading      240  -m bench.loading {data}
step_recipes  60  -m bench.step recipes {device} --seconds 30
scale        150  -m bench.scale
step         600  -m bench.step {device} --seconds 200
report        30  -m bench.report --to {to}
""",
    "gpu": """
headline     150  -m bench.waterfall headline {device} --seconds 20
peaks         40  -m bench.peaks {device}
waterfall    100  -m bench.waterfall {device} --seconds 25
kernels      110  -m bench.kernels {device} --seconds 90
dram          60  -m bench.kernels dram {device} --seconds 50
chunk         75  -m bench.waterfall chunk {device} --seconds 10
gpu_tests    110  -m pytest -v --maxfail=20 -p no:cacheprovider tests/gpu --ignore tests/gpu/test_sanitizer.py
chunks        45  -m bench.waterfall chunks {device} --no-compile --seconds 5
step          90  -m bench.step {device} --seconds 60
step_recipes  30  -m bench.step recipes {device} --seconds 10
evaluation    45  -m bench.evaluation {device}
accuracy      60  {accuracy} --only CIFAR10-1-short --rungs random dm --protocols dm
report        30  -m bench.report --to {to}
""",
    "accuracy": """
full         150  {accuracy} --only CIFAR10-10-full CIFAR10-1-full --rungs trained dm partition random
full_50      260  {accuracy} --only CIFAR10-50-full --rungs trained partition dm random
sweeps       100  {accuracy} --only CIFAR10-10 --rungs trained --validation --lr_img .1 .2 .4 --ce_weight 1 2.5 10 {idc}
ladder       150  {accuracy} --only CIFAR10-10 {idc}
curve         60  {accuracy} --only CIFAR10-10-5000 --rungs dm trained --checks 5
report        30  -m bench.report --to {to}
""",
}


class Stage(NamedTuple):
    """A suite's run: arguments of python, and its time budget."""

    name: str
    arguments: Sequence[str]
    seconds: float


def stages(kind: str, device: str, data: Path | None, smoke: bool) -> Iterator[Stage]:
    out = records.folder()
    words = {
        "device": f"--device {device}",
        "data": f"--data_path {shlex.quote(str(data))}" if data else "",
        "idc": "--protocols idc --seeds 0 1 2",
        # The page of all records: next to the committed ones, or among others.
        "to": shlex.quote(str(out.parent if out == records.FOLDER else out)),
    }
    words["accuracy"] = "-m bench.accuracy {device} {data}".format(**words)
    for line in STAGES[kind].strip().splitlines():
        name, seconds, *command = shlex.split(line.format(**words))
        if (name == "accuracy" and data is None) or (name == "gpu_tests" and device == "cpu"):
            continue
        if smoke and name not in ("gpu_tests", "report"):
            command.append("--smoke")
        # On however busy a machine, a smoke run says whether it runs.
        yield Stage(name, command, float(seconds) * (5 if smoke else 1))


def run_all(stages: Sequence[Stage], seconds: float, recorder: Recorder, least: float = 10.0) -> int:
    """Run the stages until the time is used up; the record is saved after each. Returns 0 if all of them went well.

    least: seconds that a stage must have left to be begun.
    """
    deadline = time.monotonic() + seconds
    folder = records.folder()
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    for stage in stages:
        # The report at the end is owed its time.
        left = deadline - time.monotonic() - (0 if stage is stages[-1] else stages[-1].seconds)
        row: Row = {"name": stage.name, "command": " ".join(("python", *map(machine.relative, stage.arguments)))}
        if left < least:
            recorder.add(row | {"end": "no time left", "took_seconds": 0.0})
        else:
            recorder.add(row | _run(stage, min(stage.seconds, left), folder / "logs" / f"{stage.name}.log"))
        _pack(folder)
    return 0 if all(row["end"] == "done" for row in recorder.rows) else 1


def _run(stage: Stage, seconds: float, log: Path) -> Row:
    start = time.monotonic()
    with log.open("w") as file:
        command = [sys.executable, "-u", *stage.arguments]
        process = subprocess.Popen(command, cwd=REPOSITORY, stdout=file, stderr=file, start_new_session=True)
        try:
            end = "done" if process.wait(seconds) == 0 else f"failed with {process.returncode}"
        except subprocess.TimeoutExpired:
            end = f"stopped after {seconds:.0f} s"
        finally:
            if process.poll() is None:
                # With its compiler's workers, which share its process group.
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()] or [""]
    said = " ".join(map(machine.relative, lines[-1].split()))[:200]
    return {"end": end, "took_seconds": round(time.monotonic() - start, 1), "said": said}


def _pack(folder: Path) -> None:
    """Everything that the stages have left so far, as one file."""
    partial = folder / "results.tar.gz.partial"
    with tarfile.open(partial, "w:gz") as archive:
        for path in sorted(folder.iterdir()):
            if not path.name.startswith("results.tar.gz"):
                archive.add(path, path.name)
    partial.replace(folder / "results.tar.gz")


def _table(rows: Sequence[Row]) -> str:
    """With the last line of a log where it says something: what failed, or how many tests passed."""
    spoken = [row if row["end"] != "done" or row["name"] == "gpu_tests" else row | {"said": ""} for row in rows]
    return cells.table("stage | name; s | took_seconds | .0f; end; last words | said", spoken)


SUITE = Suite("run", "The whole run", "The stages of `make bench` and `make gpu-report`.", (), _table)


def main() -> int:
    parser = arguments.parser(__doc__)
    parser.add_argument("kind", choices=MINUTES)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--only", nargs="+", metavar="STAGE")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--device", default="cuda", help="of gpu and accuracy")
    options = parser.parse_args()
    os.environ["FASTDM_RESULTS"] = str((options.out or records.folder(options.smoke)).resolve())
    if options.smoke:
        os.environ["OMP_NUM_THREADS"] = "1"  # Threads that wait for one another cost more than they do.
    if options.kind == "accuracy" and options.data is None:
        parser.error("accuracy needs --data, the folder that holds CIFAR-10")
    device = "cpu" if options.kind == "cpu" else options.device
    every = stages(options.kind, device, options.data and options.data.resolve(), options.smoke)
    chosen = [stage for stage in every if stage.name in (options.only or [stage.name])]
    minutes = options.minutes or MINUTES[options.kind]
    return run_all(chosen, 60 * minutes, Recorder(SUITE, {"smoke": options.smoke, "minutes": minutes}, device))


if __name__ == "__main__":
    sys.exit(main())
