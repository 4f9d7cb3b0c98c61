"""How time and memory grow with classes, images per class, image size and processes; and what 512 GPUs would give.

python -m bench.scale [--smoke] [--ranks 1 2 4]

Every row is a process of its own with one thread, or several joined by gloo (`--ranks`), which condenses random images
for a few iterations. Compared are processor seconds of an iteration, which other programs change little, the most
memory that the process had, and what `fastdm plan` says of it. The rows of GPUs are a model: see
`fastdm.condensation.calibration`.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

import fastdm
from bench.harness import arguments, cells, plots
from bench.harness.machine import REPOSITORY
from bench.harness.records import STEP, Recorder, Result, Row, Suite, spread
from fastdm.condensation.calibration import modelled, process_bytes
from fastdm.condensation.forecast import forecast
from fastdm.condensation.presets import PRESETS
from fastdm.condensation.settings import Settings
from fastdm.data.pool import Dataset, Pool
from fastdm.data.unread import unread_dataset
from fastdm.runs.recording import peak_resident
from fastdm.system.device import free_memory
from fastdm.system.gpus import GPUS
from fastdm.system.ranks import joined

ITERATIONS = 3
BASE = {"classes": 100, "ipc": 1, "size": 16, "batch_real": 8, "network": "ConvNetW32"}
"""A case unless it says otherwise: small, so that 10,000 classes take seconds."""

SERIES = {
    "classes": (10, 100, 1000, 10_000),
    "ipc": (1, 10, 100, 1000),
    "size": (32, 64, 128, 224),
}
SMOKE = {"classes": (4, 8), "ipc": (1, 2), "size": (16, 32)}
GPU_COUNTS = (1, 8, 64, 512)


def worker(case: dict[str, Any], out: Path) -> None:
    """Condense by a case in this process; write what it took."""
    torch.set_num_threads(1)
    base = process_bytes()
    count = case["classes"] * case["batch_real"]
    images = torch.randint(0, 256, (count, 3, case["size"], case["size"]), dtype=torch.uint8)
    pool = Pool(images, torch.arange(case["classes"] + 1) * case["batch_real"])
    names = tuple(map(str, range(case["classes"])))
    data = Dataset("random", pool, None, names, (0.5,) * 3, (0.25,) * 3)
    marks: list[float] = []
    with joined():
        fastdm.condense(
            data, settings=_settings(case), device="cpu", callback=lambda *_: marks.append(time.process_time())
        )
    seconds = [after - before for before, after in pairwise(marks)]
    peak = peak_resident()
    rank = int(os.environ.get("RANK", "0"))
    (out / f"{rank}.json").write_text(json.dumps({"base": base, "peak": peak, "seconds": seconds}))


def _settings(case: dict[str, Any]) -> Settings:
    return Settings(
        ipc=case["ipc"],
        iterations=ITERATIONS,
        batch_real=case["batch_real"],
        network=case["network"],
        init="noise",
        precision="fp32",
    )


def measure(case: dict[str, Any], ranks: int) -> Row:
    """A case in processes of its own: that which takes longest, and that which takes most."""
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, *launch, "-m", "bench.scale", "--worker", json.dumps(case), "--out", folder]
        subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, timeout=600)
        found = [json.loads(path.read_text()) for path in sorted(Path(folder).iterdir())]
    cpu = torch.device("cpu")
    data = unread_dataset(
        case["classes"], case["classes"] * case["batch_real"], (3, case["size"], case["size"]), in_memory=True
    )
    settings = _settings(case).resolve(data, cpu)
    base = max(each["base"] for each in found)
    planned = forecast(data, settings, cpu, None, memory=free_memory(), process_bytes=base, ranks=ranks, saves=False)
    slowest = max(found, key=lambda each: sum(each["seconds"]))
    peak = max(each["peak"] for each in found)
    return {
        "seconds": {"iteration": spread(slowest["seconds"])},
        "base_bytes": base,
        "peak_bytes": peak,
        "planned_bytes": planned.bytes("host"),
        "error": abs(planned.bytes("host") / peak - 1),
        "tolerance": 0.15,
    }


def model(gpus: int) -> Row:
    """ImageNet-1K at 64 pixels, ten images per class, on H100s."""
    preset = PRESETS["imagenet64"]
    data = unread_dataset(preset.classes, preset.images, preset.image_shape)
    settings = Settings(**preset.settings, precision="bf16").resolve(data, torch.device("cuda", 0))
    rate = modelled(GPUS["H100"], settings)
    found = forecast(data, settings, torch.device("cuda", 0), rate, memory=GPUS["H100"].memory, ranks=gpus)
    return {
        "modelled_seconds": found.seconds,
        "serial_share": found.serial,
        "planned_bytes": found.bytes("device"),
        "note": rate.source,
    }


def _draw(result: Result) -> Any:
    drawn, axes = plots.figure(result, columns=3, size=(10, 3))
    for name, one in zip(SERIES, axes, strict=True):
        rows = [row for row in result["rows"] if row["series"] == name and "peak_bytes" in row]
        x = [row[name] for row in rows]
        for label, key, color in (("measured", "peak_bytes", plots.OURS), ("planned", "planned_bytes", plots.OTHER)):
            one.plot(x, [row[key] / 2**30 for row in rows], "o-", color=color, label=label)
        plots.label(one, name, "GiB")
        one.set(yscale="linear", ylim=(0, None), xticks=x)
        one.xaxis.set_major_formatter("{x:g}")
        one.minorticks_off()
    return drawn


SUITE = Suite(
    "scale",
    "Scale",
    "Random images, one thread; processor seconds of an iteration, the most memory of the process (PyTorch itself "
    "takes the base), and what `fastdm plan` says. The rows of GPUs are a model, not measured.",
    (*STEP, "networks"),
    [
        ("case", cells.text("name")),
        ("processor s per iteration", cells.spread("iteration", 1)),
        ("modelled s per iteration", cells.number("modelled_seconds", "{:.3g}")),
        ("serial share", cells.number("serial_share", "{:.2g}")),
        ("base MiB", cells.number("base_bytes", "{:,.0f}", 2**20)),
        ("peak MiB", cells.number("peak_bytes", "{:,.0f}", 2**20)),
        ("planned MiB", cells.number("planned_bytes", "{:,.0f}", 2**20)),
        ("off by", cells.error),
    ],
    plots={"memory": _draw},
)


def main() -> None:
    parser = arguments.parser(__doc__)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1], help="processes that share the classes")
    parser.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is not None:
        worker(options.worker, options.out)
        return
    recorder = Recorder(SUITE, {"smoke": options.smoke, "iterations": ITERATIONS, **BASE})
    for series, values in (SMOKE if options.smoke else SERIES).items():
        for value in values:
            case = {**BASE, series: value, **({"classes": 10} if series != "classes" else {})}
            recorder.add({"name": f"{value:,} {series}", "series": series, **case}, partial(measure, case, 1))
    for ranks in options.ranks:
        recorder.add({"name": f"{ranks} ranks", "series": "ranks", **BASE}, partial(measure, BASE, ranks))
    for gpus in GPU_COUNTS:
        recorder.add({"name": f"model: {gpus} H100", "series": "gpus"}, partial(model, gpus))


if __name__ == "__main__":
    main()
