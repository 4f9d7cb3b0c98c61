"""The time to train networks on a condensed set of CIFAR-10's size and to test them; on a CPU fewer and shorter.

precision: of ours; the public form computes in float32.
"""

from argparse import Namespace
from functools import partial

import torch

from bench.harness import arguments, records
from bench.harness.loops import trainings
from bench.harness.records import STEP, Row, Rows, Suite
from bench.harness.timer import race
from bench.harness.workloads import CPU_SIZES, GPU_SIZES, Workload

CPU_EPOCHS = {"CIFAR-10 ipc 1": 20, "CIFAR-10 ipc 10": 2, "FashionMNIST ipc 10": 2}
"""By size, so that each takes seconds."""


def measure(
    work: Workload, device: torch.device, precision: str | None, networks: int, epochs: int, class_tests: int
) -> Row:
    ours, _ = trainings(work, device, 1, 1, class_tests, precision)
    ours()  # loads what is loaded once
    ours, public = trainings(work, device, networks, epochs, class_tests, precision)
    row = race({"ours": ours, "public": public}, device, ("public", "ours"), rounds=3, seconds=10.0, warm_up=0)
    per_second = networks * epochs / row["seconds"]["ours"]["median"]
    about = {"networks": networks, "epochs": epochs, "test_images": class_tests * work.classes}
    return about | row | {"networks_epochs_per_s": per_second}


SUITE = Suite(
    "evaluation",
    "Evaluation",
    "Training of networks on a condensed set and their test, in turns with the same one by one, as in the public code.",
    (*STEP, "evaluation"),
    """
    size | name; precision; networks; epochs; test images | test_images | ,.0f
    fastdm, s | ours | s; public, s | public | s; × public | ratio | .2f
    networks × epochs per s | networks_epochs_per_s | .3g
    """,
)


def rows(options: Namespace) -> Rows:
    smoke, on_gpu = options.smoke, options.device.type == "cuda"
    for work in GPU_SIZES[:3] if on_gpu else [work for work in CPU_SIZES if work.name in CPU_EPOCHS]:
        size = (2, 2, 16) if smoke else (20, 20, 1000) if on_gpu else (5, CPU_EPOCHS[work.name], 30)
        about = {"name": work.name, "precision": options.precision}
        yield about, partial(measure, work.smoke() if smoke else work, options.device, options.precision, *size)


if __name__ == "__main__":
    parser = arguments.parser(__doc__, "--device")
    parser.add_argument("--precision", choices=("fp32", "tf32", "bf16"), help="by default that of fastdm.evaluate")
    records.record(SUITE, parser.parse_args(), rows)
