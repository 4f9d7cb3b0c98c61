"""What `--compile` is worth on a CPU: a step whose network torch.compile has fused, beside one as PyTorch runs it.

    python -m bench.torch_compile [--network ConvNetBN …] [--batch_real 64] [--seconds 12]

Both condense random pixels of CIFAR-10's shape, 10 images per class, in float32, in turns, in a process per network. It
finds nothing in torch.compile's cache: the seconds are those of a first run, most of which all networks take alike. A
row whose steps change the images differently has no times.
"""

import argparse
import json
import math
import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import count
from multiprocessing import get_context
from typing import Any

from bench import results
from bench.cpu_step import CPU, SPIN_COUNT, fast_step
from bench.timer import host_times
from fastdm.condensation.step import Step
from fastdm.networks.architectures import network_names

NETWORKS = ("ConvNetBN", "ConvNetMP", "AlexNet")  # BatchNorm; max pooling; max pooling and no norm
IPC = 10
TOLERANCE = 1e-2
"""Of the difference of both steps' first changes of the images, in norm and of its own length. The largest roundings
are those of PyTorch's statistics of BatchNorm, sums of n = 100 · 16² values one by one, whose mean is as large as their
deviation: partial sums rounded by 2^-24 leave √n/3 · 2^-24 = 3e-6 deviations. Of the activations, 3e-6 · 0.8 · φ(0)
then come to the other side of a ReLU, of which half are on, and a gradient entry there is wrong by itself: in three
layers √(3 · 2 · 1e-6) = 2.4e-3. Allowed is four times that: a few of them decide, and behind max pooling there are as
many other winners again."""


def measure(network: str, batch_real: int, seconds: float) -> dict[str, Any]:
    """The row of a network; in a process of its own, whose cache of compiled code it sets."""
    row: dict[str, Any] = {"name": network, "batch_real": batch_real, "ipc": IPC}
    eager, compiled = (fast_step("CIFAR10", IPC, network=network, batch_real=batch_real) for _ in range(2))
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        try:
            row["compile_seconds"] = compiled.compile()
        except RuntimeError as error:  # There is no C++ compiler, or torch.compile cannot take this network.
            return row | {"failure": f"{type(error).__name__}: {error}"[:400]}
    for step in (eager, compiled):
        step(0)
    row["error"] = float((compiled.velocity - eager.velocity).norm() / eager.velocity.norm())
    row["tolerance"] = TOLERANCE
    row["correct"] = row["error"] <= TOLERANCE
    if row["correct"]:
        functions = {"eager": _iterations(eager), "compiled": _iterations(compiled)}
        row |= compared(host_times(functions, CPU, seconds=seconds, warm_up=0), row["compile_seconds"])
    return row


def _iterations(step: Step) -> Callable[[], object]:
    """A call of the step for each iteration after the first."""
    numbers = count(1)
    return lambda: step(next(numbers))


def compared(times: dict[str, list[float]], compile_seconds: float) -> dict[str, Any]:
    """Times, their ratio, and the iterations that save as much as compiling took, if any do."""
    seconds = {name: results.spread(values) for name, values in times.items()}
    eager, compiled = seconds["eager"]["median"], seconds["compiled"]["median"]
    row = {"seconds": seconds, "ratio": eager / compiled}
    return row | ({"paid_after": math.ceil(compile_seconds / (eager - compiled))} if compiled < eager else {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=network_names(), nargs="+", default=NETWORKS)
    parser.add_argument("--batch_real", type=int, default=64, help="real images per class")
    parser.add_argument("--seconds", type=float, default=12.0, help="for the timing of a network, about")
    options = parser.parse_args()
    os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
    run = partial(measure, batch_real=options.batch_real, seconds=options.seconds)
    rows = []
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as pool:
        for row in pool.map(run, options.network):
            rows.append(row)
            print(json.dumps(row), flush=True)
            results.save("torch_compile", rows, {"precision": "fp32"})


if __name__ == "__main__":
    main()
