"""The time to train networks on a condensed set of CIFAR-10's size and to test them; on a CPU fewer and shorter.

python -m bench.evaluation [--device cuda] [--smoke]
"""

import dataclasses
from functools import partial
from itertools import count

import torch

import fastdm
from bench.harness import arguments, cells, records
from bench.harness.records import STEP, Recorder, Row, Suite
from bench.harness.timer import timed
from bench.harness.workloads import CPU, GPU_SIZES, Workload


def measure(work: Workload, device: torch.device, networks: int, epochs: int, class_tests: int) -> Row:
    dataset = dataclasses.replace(work, class_size=class_tests).dataset(CPU)
    dataset = dataclasses.replace(dataset, test=dataset.train)
    images = torch.randn(work.classes * work.ipc, *dataset.image_shape, generator=torch.Generator().manual_seed(0))
    condensed = fastdm.SyntheticSet(images, dataset.class_names, dataset.mean, dataset.std, dataset.name, {})
    fastdm.evaluate(condensed, dataset, num_eval=1, epochs=1, device=device)
    seeds = count()

    def run() -> None:
        fastdm.evaluate(condensed, dataset, num_eval=networks, epochs=epochs, seed=next(seeds), device=device)

    seconds = records.spread([timed(run, 1, device) for _ in range(3)])
    return {
        "networks": networks,
        "epochs": epochs,
        "test_images": class_tests * work.classes,
        "seconds": {"all": seconds},
        "networks_epochs_per_s": networks * epochs / seconds["median"],
    }


SUITE = Suite(
    "evaluation",
    "Evaluation",
    "Training of networks on a condensed set, and their test.",
    (*STEP, "evaluation"),
    cells.columns(
        """
        size | name; networks; epochs; test images | test_images | ,.0f
        s | all | s; networks × epochs per s | networks_epochs_per_s | .3g
        """
    ),
)


def main() -> None:
    options = arguments.parser(__doc__, device=True).parse_args()
    device = arguments.device_of(options)
    on_gpu = device.type == "cuda"
    networks, epochs = (2, 2) if options.smoke else (20, 20) if on_gpu else (2, 10)
    class_tests = 1000 if on_gpu and not options.smoke else 16
    recorder = Recorder(SUITE, {"smoke": options.smoke}, options.device)
    for work in GPU_SIZES[: 3 if on_gpu else 2]:
        how = partial(measure, work.smoke() if options.smoke else work, device, networks, epochs, class_tests)
        recorder.add({"name": work.name}, how)


if __name__ == "__main__":
    main()
