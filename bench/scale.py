"""How time and memory grow with classes, images per class, image size and processes; and what 512 GPUs would give.

Every row is a process of its own with one thread, or several joined by gloo (`--ranks`), which condenses random images
for a few iterations. Compared are processor seconds of an iteration, which other programs change little, the most
memory that the process had, and what `fastdm plan` says of it. The rows of GPUs are a model: see
`fastdm.condensation.calibration`.
"""

import os
import socket
import time
from argparse import Namespace
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import pairwise
from multiprocessing import get_context
from typing import Any

import torch

import fastdm
from bench.harness import arguments, plots, records
from bench.harness.records import STEP, Result, Row, Rows, Suite, spread
from bench.harness.workloads import CPU, Workload
from fastdm.condensation.calibration import modelled, process_bytes
from fastdm.condensation.forecast import forecast
from fastdm.condensation.presets import PRESETS
from fastdm.condensation.settings import Settings
from fastdm.data.unread import unread_dataset
from fastdm.runs.recording import peak_resident
from fastdm.system.device import free_memory
from fastdm.system.gpus import GPUS
from fastdm.system.ranks import joined

ITERATIONS = 3
BASE = {"classes": 100, "ipc": 1, "size": 16, "batch_real": 8, "network": "ConvNetW32"}
"""A case unless it says otherwise: small, so that 10,000 classes take seconds."""

SERIES = {"classes": (10, 100, 1000, 10_000), "ipc": (1, 10, 100, 1000), "size": (32, 64, 128, 224)}
SMOKE = {"classes": (4, 8), "ipc": (1, 2), "size": (16, 32)}
GPU_COUNTS = (1, 8, 64, 512)


def condense(work: Workload, settings: Settings, ranks: int, port: int, rank: int) -> Row:
    """Condense in this process, one of so many that meet at a port; what it took."""
    torch.set_num_threads(1)
    if ranks > 1:
        os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
        os.environ |= {name: str(rank) for name in ("RANK", "LOCAL_RANK")}
        os.environ |= {name: str(ranks) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE")}
    base, data = process_bytes(), work.dataset(CPU)
    marks: list[float] = []
    mark = lambda *_: marks.append(time.process_time())  # noqa: E731
    with joined():
        fastdm.condense(data, settings=settings, device=CPU, callback=mark)
    seconds = [after - before for before, after in pairwise(marks)]
    return {"base": base, "peak": peak_resident(), "seconds": seconds}


def measure(case: dict[str, Any], ranks: int) -> Row:
    """A case in processes of its own: that which takes longest, and that which takes most."""
    work = Workload("random", class_size=case["batch_real"], **case)
    settings = work.settings(iterations=ITERATIONS, precision="fp32")
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
    with ProcessPoolExecutor(ranks, get_context("spawn")) as pool:
        found = list(pool.map(partial(condense, work, settings, ranks, port), range(ranks)))
    shape = (work.channels, work.size, work.size)
    data = unread_dataset(work.classes, work.classes * work.class_size, shape, in_memory=True)
    base, peak = (max(each[key] for each in found) for key in ("base", "peak"))
    how: dict[str, Any] = {"memory": free_memory(), "process_bytes": base, "ranks": ranks, "saves": False}
    planned = forecast(data, settings.resolve(data, CPU), CPU, None, **how).bytes("host")
    seconds = {"iteration": spread(max((each["seconds"] for each in found), key=sum))}
    row: Row = {"seconds": seconds, "base_bytes": base, "peak_bytes": peak, "planned_bytes": planned}
    return row | {"error": abs(planned / peak - 1), "tolerance": 0.15}


def model(gpus: int) -> Row:
    """ImageNet-1K at 64 pixels, ten images per class, on H100s."""
    preset, device = PRESETS["imagenet64"], torch.device("cuda", 0)
    data = unread_dataset(preset.classes, preset.images, preset.image_shape)
    settings = Settings(**preset.settings, precision="bf16").resolve(data, device)
    rate = modelled(GPUS["H100"], settings)
    found = forecast(data, settings, device, rate, memory=GPUS["H100"].memory, ranks=gpus)
    row: Row = {"modelled_seconds": found.seconds, "serial_share": found.serial}
    return row | {"planned_bytes": found.bytes("device"), "note": rate.source}


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
    STEP,
    """
    case | name; processor s per iteration | iteration | s; modelled s per iteration | modelled_seconds | .3g
    serial share | serial_share | .2g; base MiB | base_bytes | ,.0f/1048576; peak MiB | peak_bytes | ,.0f/1048576
    planned MiB | planned_bytes | ,.0f/1048576; off by | error
    """,
    plots={"memory": _draw},
)


def rows(options: Namespace) -> Rows:
    for series, values in (SMOKE if options.smoke else SERIES).items():
        for value in values:
            case = {**BASE, series: value, **({"classes": 10} if series != "classes" else {})}
            yield {"name": f"{value:,} {series}", "series": series, **case}, partial(measure, case, 1)
    for ranks in options.ranks:
        yield {"name": f"{ranks} ranks", "series": "ranks", **BASE}, partial(measure, BASE, ranks)
    for gpus in GPU_COUNTS:
        yield {"name": f"model: {gpus} H100", "series": "gpus"}, partial(model, gpus)


if __name__ == "__main__":
    parser = arguments.parser(__doc__)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1], help="processes that share the classes")
    records.record(SUITE, parser.parse_args(), rows, iterations=ITERATIONS, **BASE)
