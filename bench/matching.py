"""Distribution matching against gradient matching (DSA): seconds of what each repeats, and of whole runs, on random
images of CIFAR-10's shape.
"""

from argparse import Namespace
from collections.abc import Callable
from functools import partial

import torch

from bench.baselines.public_gradient_matching import ITERATIONS, PUBLISHED, GradientMatching
from bench.harness import arguments, records
from bench.harness.loops import make
from bench.harness.records import STEP, Row, Rows, Suite
from bench.harness.timer import host_times, numbered
from bench.harness.workloads import GPU_SIZES, Workload

DM_ITERATIONS = 20_000
SIZES = {work.ipc: work for work in GPU_SIZES if work.name.startswith("CIFAR-10 ipc")}
SECONDS = 60.0  # of one size, from the third round on


def measure(work: Workload, device: torch.device, ipc: int) -> Row:
    """ipc: that of the published loops, which a smoke run's workload does not have."""
    dataset = work.dataset(device)
    gradient = GradientMatching(dataset, work.settings(precision="fp32"), device)
    functions: dict[str, Callable[[], object]] = {"gradient": partial(gradient, 0), "epoch": gradient.train}
    for kind in ("fastdm", "public"):
        functions[kind] = numbered(make(kind, work, dataset, device, "fp32"))
    seconds = records.spreads(host_times(functions, device, rounds=3, seconds=SECONDS, warm_up=1, sample=0.0))
    return {**vars(PUBLISHED[ipc]), "seconds": seconds, **runs(seconds, ipc)}


def runs(seconds: dict[str, records.Spread], ipc: int) -> Row:
    """Hours of whole runs, and how many times as long gradient matching takes."""
    unit = {name: spread["median"] for name, spread in seconds.items()}
    loops = PUBLISHED[ipc]
    took = {
        "gradient": ITERATIONS * (loops.outer * unit["gradient"] + loops.epochs * unit["epoch"]),
        "public": DM_ITERATIONS * unit["public"],
        "fastdm": DM_ITERATIONS * unit["fastdm"],
    }
    return {
        "hours": {name: each / 3600 for name, each in took.items()},
        "step_ratio": {name: unit["gradient"] / unit[name] for name in ("public", "fastdm")},
        "run_ratio": {name: took["gradient"] / took[name] for name in ("public", "fastdm")},
    }


SUITE = Suite(
    "matching",
    "Gradient matching",
    f"One outer step of gradient matching (DSA) and one epoch of its inner loop, in turns with an iteration of "
    f"distribution matching as in the public code and as in fastdm, float32. Hours of a run are extrapolated from "
    f"these to the published budgets: {ITERATIONS:,} × (outer × step + (outer − 1) × inner × epoch) and "
    f"{DM_ITERATIONS:,} iterations of DM, without any evaluation.",
    (*STEP, "bench/baselines"),
    """
    size | name; outer | outer | .0f; inner | inner | .0f
    outer step, s | gradient | s; inner epoch, s | epoch | s; public DM, s | public | s; fastdm, s | fastdm | s
    step × public DM | step_ratio.public | .2f; step × fastdm | step_ratio.fastdm | .1f
    run, h | hours.gradient | .3g; public DM, h | hours.public | .3g; fastdm, h | hours.fastdm | .3g
    run × public DM | run_ratio.public | .2f; run × fastdm | run_ratio.fastdm | .1f
    """,
    quoted="""
    size | name; gradient matching, h | hours.gradient | .3g; public DM, h | hours.public | .3g
    fastdm, h | hours.fastdm | .3g; public DM, × | run_ratio.public | .2g; fastdm, × | run_ratio.fastdm | .2g
    """,
)


def rows(options: Namespace) -> Rows:
    for ipc, work in SIZES.items():
        yield {"name": work.name}, partial(measure, work.smoke() if options.smoke else work, options.device, ipc)


if __name__ == "__main__":
    records.record(SUITE, arguments.parser(__doc__, "--device").parse_args(), rows)
