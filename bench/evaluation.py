"""The time to train networks on a condensed set of CIFAR-10's size and to test them; on a CPU fewer and shorter.

python -m bench.evaluation [--device cuda] [--smoke]
"""

import dataclasses
from argparse import Namespace
from functools import partial
from itertools import count

import torch
from torch.utils.data import DataLoader

import fastdm
from bench.baselines.public_evaluation import PublicImages, public_evaluate
from bench.baselines.public_step import ConvNet
from bench.harness import arguments, cells, records
from bench.harness.records import STEP, Recorder, Row, Suite
from bench.harness.timer import timed
from bench.harness.workloads import CPU, CPU_SIZES, GPU_SIZES, Workload
from fastdm.augmentation import DSA_STRATEGY


def measure(work: Workload, device: torch.device, networks: int, epochs: int, class_tests: int) -> Row:
    dataset = dataclasses.replace(work, class_size=class_tests).dataset(CPU)
    dataset = dataclasses.replace(dataset, test=dataset.train)
    images = torch.randn(work.classes * work.ipc, *dataset.image_shape, generator=torch.Generator().manual_seed(0))
    condensed = fastdm.SyntheticSet(images, dataset.class_names, dataset.mean, dataset.std, dataset.name, {})
    tests = PublicImages(class_tests, work.classes, dataset.image_shape, dataset.mean, dataset.std)
    loader = DataLoader(tests, batch_size=256)
    args = Namespace(lr_net=0.01, epoch_eval_train=epochs, batch_train=256, dsa_strategy=DSA_STRATEGY)
    args.dsa_param = fastdm.ParamDiffAug()
    settings = work.settings().resolve(dataset, device)
    seeds = count()

    def ours() -> None:
        fastdm.evaluate(condensed, dataset, num_eval=networks, epochs=epochs, seed=next(seeds), device=device)

    def public() -> None:
        for _ in range(networks):
            public_evaluate(
                ConvNet(dataset, settings).to(device), images.to(device), condensed.labels.to(device), loader, args
            )

    fastdm.evaluate(condensed, dataset, num_eval=1, epochs=1, device=device)
    taken: dict[str, list[float]] = {"ours": [], "public": []}
    for _ in range(3):
        taken["ours"].append(timed(ours, 1, device))
        taken["public"].append(timed(public, 1, device))
    seconds = records.spreads(taken)
    return {
        "networks": networks,
        "epochs": epochs,
        "test_images": class_tests * work.classes,
        "seconds": seconds,
        "networks_epochs_per_s": networks * epochs / seconds["ours"]["median"],
        "ratio": seconds["public"]["median"] / seconds["ours"]["median"],
    }


SUITE = Suite(
    "evaluation",
    "Evaluation",
    "Training of networks on a condensed set and their test, in turns with the same one by one, as in the public code.",
    (*STEP, "evaluation"),
    cells.columns(
        """
        size | name; networks; epochs; test images | test_images | ,.0f
        fastdm, s | ours | s; public, s | public | s; × public | ratio | .2f
        networks × epochs per s | networks_epochs_per_s | .3g
        """
    ),
)


SIZES = [work for work in CPU_SIZES if work.name in ("CIFAR-10 ipc 1", "CIFAR-10 ipc 10", "FashionMNIST ipc 10")]


def main() -> None:
    options = arguments.parser(__doc__, device=True).parse_args()
    device = arguments.device_of(options)
    on_gpu = device.type == "cuda"
    networks, epochs = (2, 2) if options.smoke else (20, 20) if on_gpu else (5, 20)
    class_tests = 16 if options.smoke else 1000 if on_gpu else 100
    recorder = Recorder(SUITE, {"smoke": options.smoke}, options.device)
    for work in GPU_SIZES[:3] if on_gpu else SIZES:
        how = partial(measure, work.smoke() if options.smoke else work, device, networks, epochs, class_tests)
        recorder.add({"name": work.name}, how)


if __name__ == "__main__":
    main()
