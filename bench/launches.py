"""How many ops an iteration calls and how many bytes it allocates, counted by dispatch: figures without noise.

Counted are ATen ops that are not views or bare allocations, and the ops of `fastdm.kernels`, each as one. The shapes
are small and all classes lie in one chunk: the count of ops does not depend on the sizes. "device" is the path of a
GPU, followed on the CPU by telling the package that it has no C++ form of a whole block, which stays in the cache.
"""

from argparse import Namespace
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from unittest import mock

import torch

from bench.baselines.public_step import PublicStep
from bench.harness import arguments, records
from bench.harness.counter import OpCounter
from bench.harness.loops import build
from bench.harness.records import STEP, Row, Rows, Suite
from bench.harness.workloads import CPU, Workload

CLASSES = (10, 100)
ONLY_ON_CPU = ("kernels.blocks.native.takes_conv_norm_relu_pool", "networks.model.Block.stays_in_cache")


def count(loop: str, classes: int, aug_mode: str) -> OpCounter:
    """One iteration with all classes in one chunk. loop: "cpu" or "device", the path of the package; or "public"."""
    work = Workload("", classes, 16, 1, 8, 4, network="ConvNetW32", options={"aug_mode": aug_mode})
    dataset = work.dataset(CPU)
    with ExitStack() as stack:
        for name in ONLY_ON_CPU if loop == "device" else ():
            stack.enter_context(mock.patch(f"fastdm.{name}", return_value=False))
        step: Callable[[int], object] = PublicStep(dataset, work.settings(), CPU)
        if loop != "public":
            step, plan = build(work, dataset, CPU, torch.float32, "fp32", chunk_memory=1 << 34)
            assert plan.chunk_classes == classes
            step(1)  # The first iteration has more to do.
        with OpCounter() as counter:
            step(0)
    return counter


def measure(loop: str, aug_mode: str) -> Row:
    row: Row = {}
    for classes in CLASSES:
        counter = count(loop, classes, aug_mode)
        row |= {f"ops_{classes}_classes": counter.calls.total(), f"bytes_{classes}_classes": counter.allocated}
    return row


SUITE = Suite(
    "launches",
    "Launches per iteration",
    "Counted by dispatch: ops that do work, which on a GPU are launches of at least one kernel, and the bytes of all "
    "results. The package's count does not depend on the classes of a chunk. “device” is the path of a GPU.",
    STEP,
    """
    loop | name; ops, 10 classes | ops_10_classes | ,.0f; ops, 100 classes | ops_100_classes | ,.0f
    MB allocated, 10 classes | bytes_10_classes | .3g/1e6; MB allocated, 100 classes | bytes_100_classes | .3g/1e6
    """,
)


def rows(options: Namespace) -> Rows:
    for aug_mode in "S" if options.smoke else "SM":
        for loop in ("cpu", "device", "public"):
            row = {"name": f"{loop}, mode {aug_mode}", "loop": loop, "aug_mode": aug_mode}
            yield row, partial(measure, loop, aug_mode)


if __name__ == "__main__":
    torch.set_num_threads(1)
    about = {"classes": list(CLASSES), "images": "3×16×16", "network": "ConvNetW32"}
    records.record(SUITE, arguments.parser(__doc__).parse_args(), rows, **about)
