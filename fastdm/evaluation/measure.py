"""`evaluate`: networks are trained on a set, side by side, and tested on real images."""

import math
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from itertools import islice
from pathlib import Path

import torch

from fastdm.augmentation import default_strategy
from fastdm.data.pool import Dataset, Pool
from fastdm.data.sources import Source, open_dataset
from fastdm.errors import FastDMError
from fastdm.evaluation.protocol import Evaluation, Protocol
from fastdm.evaluation.training import LabelledImages, accuracy, train_network
from fastdm.networks.architectures import build_network, default_network
from fastdm.synthetic.synthetic_set import SyntheticSet, check_compatible
from fastdm.system.device import Precision, default_device, precision_context, undisturbed
from fastdm.system.progress import Progress


def recorded_settings(train: SyntheticSet | Pool, dataset: Dataset) -> tuple[str, str]:
    """Network and strategy that a set was condensed with; where it does not say, the defaults for the data set."""
    recorded = train.settings if isinstance(train, SyntheticSet) else {}
    network, strategy = recorded.get("network"), recorded.get("strategy")
    return (
        default_network(dataset.image_shape) if network is None else network,
        default_strategy(dataset.name) if strategy is None else strategy,
    )


@undisturbed()
def evaluate(
    train: SyntheticSet | Pool,
    dataset: Source,
    *,
    networks: Sequence[str] | None = None,
    num_eval: int = 20,
    epochs: int = 1000,
    lr_net: float = 0.01,
    batch_train: int = 256,
    strategy: str | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    precision: Precision | None = None,
    data_path: str | Path = "data",
    progress: bool = False,
) -> Evaluation:
    """Train `num_eval` fresh networks of each architecture on `train`; test them on the test part of `dataset`.

    The public code's protocol: SGD (momentum 0.9, weight decay 5e-4), epochs + 1 epochs in batches of `batch_train`,
    the learning rate times 0.1 and the momentum reset after epoch epochs // 2 + 1 (counted from 0); every batch is
    augmented by one family of `strategy`, with parameters of its own for every image. Test images are not augmented.

    train: a condensed set, `random_selection(…)` or `whole_set(…)`. dataset: anything that `open_dataset` takes,
    looked up under data_path. Its test images are normalised as the training images are.
    networks, strategy: by default those that the set was condensed with; where it does not say, ConvNet of the depth
    that suits the image size, and the data set's strategy (digits are not flipped). "none": no augmentation.
    device: default: the GPU if there is one. precision: "fp32", "tf32" (the default on a GPU) or "bf16".
    progress: show a bar on a terminal, JSON lines elsewhere.

    Weights, batches and augmentation follow from `seed` and the number of the network alone: on a CPU, the same call
    gives the same accuracies. Raises FastDMError, before the first training, for whatever does not fit together.

    >>> import fastdm
    >>> images = fastdm.random_selection("digits", ipc=1)
    >>> result = fastdm.evaluate(images, "digits", num_eval=1, epochs=1, device="cpu")
    >>> list(result.accuracies)
    ['ConvNet']
    """
    dataset = open_dataset(dataset, data_path=data_path)
    device = default_device(device)
    _check_train(train)
    network, recorded_strategy = recorded_settings(train, dataset)
    protocol = Protocol(
        (network,) if networks is None else networks,
        recorded_strategy if strategy is None else strategy,
        num_eval,
        epochs,
        lr_net,
        batch_train,
        seed,
        precision,
    )
    return measure(train, dataset, protocol, device, progress=progress)


@undisturbed()
def measure(
    train: SyntheticSet | Pool, dataset: Dataset, protocol: Protocol, device: torch.device, *, progress: bool = False
) -> Evaluation:
    """`evaluate` by a protocol."""
    protocol.check(dataset)
    _check_fit(train, dataset)
    assert dataset.test is not None
    mean, std = (train.mean, train.std) if isinstance(train, SyntheticSet) else (dataset.mean, dataset.std)
    examples = LabelledImages.of(train, mean, std, device)
    tests = LabelledImages.of(dataset.test, mean, std, device)
    names = list(dict.fromkeys(protocol.networks))
    jobs = [(name, number) for name in names for number in range(protocol.num_eval)]
    steps = protocol.steps(len(examples))
    bar = Progress("evaluate", len(jobs) * steps) if progress else None
    precision = protocol.precision or ("tf32" if device.type == "cuda" else "fp32")

    with bar or nullcontext(), precision_context(precision, device) as dtype:

        def run(job: tuple[str, int], after_step: Callable[[], None]) -> float:
            name, number = job
            channels, height, width = dataset.image_shape
            network = build_network(
                name,
                channels=channels,
                num_classes=dataset.num_classes,
                image_size=(height, width),
                device=device,
                drawn=False,
            )
            train_network(network, examples, protocol, number, dtype, after_step)
            return accuracy(network, tests, dtype)

        def where(done: int, at_once: int) -> str:
            return _position(done, len(jobs), at_once, steps, protocol.epochs + 1)

        results = iter(_side_by_side(run, jobs, device, bar, where))
    return Evaluation({name: [*islice(results, protocol.num_eval)] for name in names})


def _side_by_side(
    run: Callable[[tuple[str, int], Callable[[], None]], float],
    jobs: list[tuple[str, int]],
    device: torch.device,
    bar: Progress | None,
    where: Callable[[int, int], str],
) -> list[float]:
    """`run(job, after_step)` for all jobs: one after another on a GPU, on a CPU as many at once as it has threads.

    Small networks leave threads waiting for each other when they share the work of one layer; a thread that has a
    network to itself never waits.
    """
    lock, stopping, done = threading.Lock(), threading.Event(), 0

    def after_step() -> None:
        nonlocal done
        if stopping.is_set():
            raise RuntimeError("stopped because another training failed or was interrupted")
        if bar is not None:
            with lock:
                done += 1
                bar.update(done, where(done, workers))

    threads = torch.get_num_threads()
    workers = min(threads, len(jobs)) if device.type == "cpu" else 1
    # The number of threads is a setting of the thread that works with them.
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(threads // workers,)) as pool:
        try:
            return list(pool.map(lambda job: run(job, after_step), jobs))
        finally:
            stopping.set()
            torch.set_num_threads(threads)


def _position(done: int, networks: int, at_once: int, steps: int, epochs: int) -> str:
    """Where `done` updates are in the training of networks of `steps` updates, some of them side by side."""
    group = (done - 1) // (at_once * steps)
    first, last = group * at_once + 1, min((group + 1) * at_once, networks)
    share = (done - group * at_once * steps) / ((last - first + 1) * steps)
    which = f"network {first}" if first == last else f"networks {first} to {last}"
    return f"{which} of {networks}, epoch {math.ceil(share * epochs)} of {epochs}"


def _check_train(train: object) -> None:
    if not isinstance(train, SyntheticSet | Pool):
        raise FastDMError(
            f"what is trained on is a {type(train).__name__}; it must be a SyntheticSet, or what whole_set(…) gives"
        )


def _check_fit(train: SyntheticSet | Pool, dataset: Dataset) -> None:
    what = f"the set of {train.dataset}" if isinstance(train, SyntheticSet) else "what is trained on"
    check_compatible(what, train.num_classes, train.images.shape[1:], dataset)
    if train.images.is_floating_point() and not train.images.isfinite().all():
        raise FastDMError("some pixels of the training images are not finite numbers")
