"""How good a condensed set is: networks are trained on it, and tested on real images."""

import math
import statistics
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from fastdm.augmentation import Strategy, augment
from fastdm.build import arithmetic, default_device, initial_images
from fastdm.data.pool import Dataset, Pool
from fastdm.data.sources import Source, open_dataset
from fastdm.errors import FastDMError
from fastdm.kernels import uniform
from fastdm.networks import Network, build_network, initialise
from fastdm.plan import CACHE_BYTES, activations
from fastdm.progress import Progress
from fastdm.settings import Precision, Settings
from fastdm.synthetic import SyntheticSet, check_stands_for

MOMENTUM = 0.9
WEIGHT_DECAY = 5e-4
ORDER_STREAM = 5  # the stream of ``fastdm.kernels.uniform`` that shuffles the training images
_SEED_BIT = 1 << 62  # keeps the draws apart from those of a condensation with the same seed
_GPU_TEST_IMAGES = 1024  # that go through a network at once


@dataclass(frozen=True)
class Evaluation:
    """accuracies: for each architecture, the test accuracy in [0, 1] of every network that was trained."""

    accuracies: dict[str, list[float]]

    @classmethod
    def pooled(cls, evaluations: "Iterable[Evaluation]") -> "Evaluation":
        """The networks of several evaluations as those of one."""
        accuracies: dict[str, list[float]] = {}
        for evaluation in evaluations:
            for name, values in evaluation.accuracies.items():
                accuracies.setdefault(name, []).extend(values)
        return cls(accuracies)

    @property
    def mean(self) -> dict[str, float]:
        return {name: statistics.fmean(values) for name, values in self.accuracies.items()}

    @property
    def std(self) -> dict[str, float]:
        """Standard deviation over the networks (division by their number, as the public code reports it)."""
        return {name: statistics.pstdev(values) for name, values in self.accuracies.items()}


def random_selection(dataset: Source, ipc: int, seed: int = 0, *, data_path: str | Path = "data") -> SyntheticSet:
    """``ipc`` random real images per class: those that ``condense`` with this seed and init="real" starts from."""
    dataset = open_dataset(dataset, data_path=data_path)
    smallest = int(dataset.train.class_sizes.min())
    if not 1 <= ipc <= smallest:
        raise FastDMError(f"ipc is {ipc}; it must be at least 1 and at most {smallest}, the size of the smallest class")
    return SyntheticSet(
        images=initial_images(dataset, Settings(ipc=ipc, seed=seed), torch.device("cpu")),
        class_names=dataset.class_names,
        mean=dataset.mean,
        std=dataset.std,
        dataset=dataset.name,
        settings={"method": "random selection", "ipc": ipc, "seed": seed},
    )


def whole_set(dataset: Source, *, data_path: str | Path = "data") -> Pool:
    """All training images of a data set, as ``evaluate`` takes them."""
    return open_dataset(dataset, data_path=data_path).train


@dataclass(frozen=True)
class Protocol:
    """How an evaluation goes: arguments of ``evaluate``, with the networks and the strategy decided.

    Raises FastDMError for values that make no sense; ``check`` for what a data set does not allow.
    """

    networks: Sequence[str]
    strategy: str
    num_eval: int = 20
    epochs: int = 1000
    lr_net: float = 0.01
    batch_train: int = 256
    seed: int = 0
    precision: Precision | None = None

    def __post_init__(self) -> None:
        for name in ("num_eval", "epochs", "batch_train"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise FastDMError(f"{name} is {value!r}; it must be a whole number of at least 1")
        if not 0 < self.lr_net < math.inf:
            raise FastDMError(f"lr_net is {self.lr_net}; it must be above 0, and finite")
        if isinstance(self.networks, str) or not self.networks:
            raise FastDMError(f"networks is {self.networks!r}; it must be a list of at least one name")
        Settings(strategy=self.strategy, seed=self.seed, precision=self.precision)  # refuses what it does not know

    def check(self, dataset: Dataset, device: torch.device) -> None:
        """Raise FastDMError for a network that cannot take the images, and where there is nothing to test on."""
        if dataset.test is None or len(dataset.test) == 0:
            raise FastDMError(
                f"data set {dataset.name} has no test part to measure accuracies on; it can be condensed without "
                "(fastdm condense --num_eval 0)"
            )
        for name in self.networks:
            _build(name, dataset, device)


def condensed_with(train: SyntheticSet | Pool, dataset: Dataset, device: torch.device) -> Settings:
    """Network and strategy that a set was condensed with; where it does not tell, those that ``condense`` takes."""
    told = train.settings if isinstance(train, SyntheticSet) else {}
    return Settings(network=told.get("network"), strategy=told.get("strategy")).resolve(dataset, device)


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
    """Train ``num_eval`` fresh networks of each architecture on ``train``; test them on the test part of ``dataset``.

    The public code's protocol: SGD (momentum 0.9, weight decay 5e-4), epochs + 1 epochs in batches of ``batch_train``,
    the learning rate times 0.1 and the momentum anew after epoch epochs // 2 + 1 (counted from 0); every batch is
    augmented by one family of ``strategy``, with parameters of its own for every image. Test images are not augmented.

    train: a condensed set, ``random_selection(…)`` or ``whole_set(…)``. dataset: anything that ``open_dataset`` takes,
    looked up under data_path. Its test images are normalised as the training images are.
    networks, strategy: by default those that the set was condensed with; where it does not tell, ConvNet of the depth
    that suits the image size, and the data set's strategy (digits are not flipped). "none": no augmentation.
    device: default: the GPU if there is one. precision: "fp32", "tf32" (the default on a GPU) or "bf16".
    progress: show a bar on a terminal, JSON lines elsewhere.

    Weights, batches and augmentation follow from ``seed`` and the number of the network alone: on a CPU, the same call
    gives the same accuracies. Raises FastDMError, before the first training, for whatever does not fit together.
    """
    dataset = open_dataset(dataset, data_path=data_path)
    device = default_device(device)
    _check_train(train)
    usual = condensed_with(train, dataset, device)
    assert usual.network is not None
    assert usual.strategy is not None
    protocol = Protocol(
        (usual.network,) if networks is None else networks,
        usual.strategy if strategy is None else strategy,
        num_eval,
        epochs,
        lr_net,
        batch_train,
        seed,
        precision,
    )
    return measure(train, dataset, protocol, device, progress=progress)


def measure(
    train: SyntheticSet | Pool, dataset: Dataset, protocol: Protocol, device: torch.device, *, progress: bool = False
) -> Evaluation:
    """``evaluate`` by a protocol."""
    protocol.check(dataset, device)
    _check_fit(train, dataset)
    assert dataset.test is not None
    settings = Settings(precision=protocol.precision or ("tf32" if device.type == "cuda" else "fp32"))
    recipe = Recipe(protocol.epochs, protocol.lr_net, protocol.batch_train, Strategy.parse(protocol.strategy))
    mean, std = (train.mean, train.std) if isinstance(train, SyntheticSet) else (dataset.mean, dataset.std)
    examples = Examples.of(train, mean, std, device)
    tests = Examples.of(dataset.test, mean, std, device)
    names = list(dict.fromkeys(protocol.networks))
    jobs = [(name, number) for name in names for number in range(protocol.num_eval)]
    bar = Progress("evaluate", len(jobs) * recipe.steps(len(examples))) if progress else None

    with bar or nullcontext(), arithmetic(settings, device) as dtype:

        def run(job: tuple[str, int], after_step: Callable[[], None]) -> float:
            name, number = job
            network = _build(name, dataset, device)
            train_network(network, examples, recipe, protocol.seed, number, dtype, after_step)
            return accuracy(network, tests, dtype)

        results = iter(_side_by_side(run, jobs, device, bar))
    return Evaluation({name: [*islice(results, protocol.num_eval)] for name in names})


def _side_by_side(
    run: Callable[[tuple[str, int], Callable[[], None]], float],
    jobs: list[tuple[str, int]],
    device: torch.device,
    bar: Progress | None,
) -> list[float]:
    """``run(job, after_step)`` for all jobs: one after another on a GPU, on a CPU as many at once as it has threads.

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
                bar.update(done)

    threads = torch.get_num_threads()
    workers = min(threads, len(jobs)) if device.type == "cpu" else 1
    # The number of threads is a setting of the thread that works with them.
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(threads // workers,)) as pool:
        try:
            return list(pool.map(lambda job: run(job, after_step), jobs))
        finally:
            stopping.set()
            torch.set_num_threads(threads)


@dataclass(frozen=True)
class Recipe:
    """How a network is trained; see ``evaluate``."""

    epochs: int
    lr: float
    batch: int
    strategy: Strategy

    def steps(self, images: int) -> int:
        """Updates in one training on so many images."""
        return (self.epochs + 1) * -(-images // self.batch)


@dataclass(frozen=True)
class Examples:
    """Images with labels on a device; a uint8 pool stays one, and is normalised batch by batch.

    images: uint8 or normalised float32 [N, C, H, W]; labels: int64 [N]; mean, std: float32 [C], for uint8 only.
    """

    images: Tensor
    labels: Tensor
    mean: Tensor | None
    std: Tensor | None

    @classmethod
    def of(
        cls, images: SyntheticSet | Pool, mean: Sequence[float], std: Sequence[float], device: torch.device
    ) -> "Examples":
        labels = images.labels.to(device)
        if isinstance(images, SyntheticSet):
            return cls(images.images.detach().to(device), labels, None, None)
        pixels = images.to(device).images
        return cls(pixels, labels, torch.tensor(mean, device=device), torch.tensor(std, device=device))

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, index: Tensor, tables: Sequence[Tensor] = ()) -> Tensor:
        """Normalised images of the rows ``index``, augmented by one row of each table per image."""
        return augment(self.images, tables, index=index, mean=self.mean, std=self.std, channels_last=True)


def train_network(
    network: Network,
    examples: Examples,
    recipe: Recipe,
    seed: int,
    number: int,
    dtype: torch.dtype,
    after_step: Callable[[], None] = lambda: None,
) -> None:
    """Initialise ``network`` as number ``number`` of this seed and train it; see ``evaluate``.

    dtype: of the forward pass; weights and gradients are float32. Nothing waits for the device.
    """
    device = examples.images.device
    key = torch.tensor([seed ^ _SEED_BIT, number * recipe.steps(len(examples))], device=device)
    initialise(network, key)
    network.train()
    size = (examples.images.shape[2], examples.images.shape[3])
    rows = torch.arange(min(recipe.batch, len(examples)), device=device)
    at_once = _images_at_once(network, examples, recipe.batch)

    optimizer = _sgd(network, recipe.lr)
    for epoch in range(recipe.epochs + 1):
        order = uniform(key, rows[:1], len(examples), ORDER_STREAM)[0].argsort(stable=True)
        for start in range(0, len(examples), recipe.batch):
            index = order[start : start + recipe.batch]
            tables = recipe.strategy.draw(key, rows[: len(index)], size, one_family=True)
            optimizer.zero_grad()
            for first in range(0, len(index), at_once):
                part = slice(first, first + at_once)
                images = examples.batch(index[part], [table[part] for table in tables])
                with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                    logits = network(images)
                loss = functional.cross_entropy(logits.float(), examples.labels[index[part]], reduction="sum")
                (loss / len(index)).backward()
            optimizer.step()
            key[1] += 1
            after_step()
        if epoch == recipe.epochs // 2 + 1:
            optimizer = _sgd(network, 0.1 * recipe.lr)


@torch.inference_mode()
def accuracy(network: Network, examples: Examples, dtype: torch.dtype) -> float:
    """Share of the examples that ``network`` classifies rightly, with the statistics of training in BatchNorm."""
    network.eval()
    device = examples.images.device
    right = torch.zeros((), dtype=torch.int64, device=device)
    rows = torch.arange(len(examples), device=device)
    for index in torch.split(rows, _images_at_once(network, examples, _GPU_TEST_IMAGES)):
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            logits = network(examples.batch(index))
        right += (logits.argmax(1) == examples.labels[index]).sum()
    return right.item() / len(examples)


def _sgd(network: Network, lr: float) -> torch.optim.SGD:
    return torch.optim.SGD(network.parameters(), lr, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY, fused=True)


def _images_at_once(network: Network, examples: Examples, batch: int) -> int:
    """``batch``; on a CPU only as many as keep a layer's activations in its cache, unless BatchNorm joins them."""
    device, (channels, height, width) = examples.images.device, examples.images.shape[1:]
    joint = network.training and any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    if device.type != "cpu" or joint:
        return batch
    largest = activations(network, (channels, height, width), torch.float32).largest
    return min(batch, max(1, CACHE_BYTES // largest))


def _build(name: str, dataset: Dataset, device: torch.device) -> Network:
    channels, *size = dataset.image_shape
    network = build_network(name, channels=channels, num_classes=dataset.num_classes, image_size=(size[0], size[1]))
    return network.to(device, memory_format=torch.channels_last)  # type: ignore[no-any-return, call-overload]


def _check_train(train: object) -> None:
    if not isinstance(train, SyntheticSet | Pool):
        raise FastDMError(
            f"what is trained on is a {type(train).__name__}; it must be a SyntheticSet, or what whole_set(…) gives"
        )


def _check_fit(train: SyntheticSet | Pool, dataset: Dataset) -> None:
    what = f"the set of {train.dataset}" if isinstance(train, SyntheticSet) else "what is trained on"
    check_stands_for(what, train.num_classes, train.images.shape[1:], dataset)
    if train.images.is_floating_point() and not train.images.isfinite().all():
        raise FastDMError("some pixels of the training images are not finite numbers")
