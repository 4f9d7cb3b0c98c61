"""The calls that replace the public code's, each compared with the public form, interleaved.

    python -m bench.calls [augment] [--only evaluate_synset …] [--threads 1 2] [--seconds 5]

A call whose result differs from the public one's is not timed. `evaluate_synset`, `RealImages` and `dm_loss` are
compared with the public loops around our own `DiffAugment`, on random images of CIFAR-10's shape and with the network
that a public script brings along: its ConvNet, in modules of PyTorch.

augment: `DiffAugment` by the number of images, forward and with the gradient, Siamese and each image its own way.
"""

import contextlib
import copy
import dataclasses
import io
import itertools
import math
from argparse import Namespace
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

import fastdm
from bench.baselines.public_augment import diff_augment
from bench.baselines.public_evaluation import public_arguments, public_evaluate
from bench.baselines.public_images import PublicImages, PublicPool
from bench.baselines.public_step import ConvNet, summed_loss
from bench.harness import arguments, cells, records
from bench.harness.loops import check, make, trainings
from bench.harness.records import STEP, Row, Rows, Suite
from bench.harness.timer import numbered, race, threads
from bench.harness.workloads import CIFAR10, CPU, Workload
from fastdm.augmentation import DSA_STRATEGY
from fastdm.compat import RealImages, dm_loss, evaluate_synset
from fastdm.data.unread import unread_dataset

CLASSES, SHAPE = 10, (3, 32, 32)
IMAGES = dataclasses.replace(
    unread_dataset(CLASSES, CLASSES, SHAPE), mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010)
)
NUMBERS = (1, 10, 256, 1024)  # of images that `augment` measures
EPS = torch.finfo(torch.float32).eps

Call = Callable[[], object]


class Pair(NamedTuple):
    """A call of the package and the public one; error: of the former's result, and what it may be."""

    ours: Call
    public: Call
    error: float = 0.0
    tolerance: float = 0.0


# --- single calls ----------------------------------------------------------------------------------------------------


def augment(images: int = 256, mode: str = "S", draws: str = "Siamese", direction: str = "forward") -> Pair:
    """The augmentation of one class and, if asked for, its gradient; Siamese or per image."""
    backward = direction != "forward"
    x = torch.randn(images, *SHAPE, generator=torch.Generator().manual_seed(0)).requires_grad_(backward)
    grad, few = torch.ones_like(x), x[:64].detach().requires_grad_(backward)
    param, seeds = fastdm.ParamDiffAug(), count(12)
    param.aug_mode = mode

    def run(function: Callable[..., Tensor], seed: int, x: Tensor = x) -> Tensor:
        if draws != "Siamese":
            torch.default_generator.manual_seed(seed)
        out = function(x, DSA_STRATEGY, seed if draws == "Siamese" else -1, param)
        return torch.autograd.grad(out, x, grad[: len(x)])[0] if out.requires_grad else out

    ours, public = (partial(run, function) for function in (fastdm.DiffAugment, diff_augment))
    error = max(float((ours(seed, few) - public(seed, few)).abs().max()) for seed in range(12))
    # The public code's own float32 sampling grid is 1.2e-5 from float64, in mode M twice, and the gradient of a pixel
    # collects weights that add up to 1.5² at most.
    tolerance = 2.5e-5 * (2.25 if backward else 1)
    return Pair(lambda: ours(next(seeds)), lambda: public(next(seeds)), error, tolerance)


def draw() -> Pair:
    """256 distinct images of each of ten classes; the public code permutes each class. The error counts repetitions."""
    pool, steps = CIFAR10.dataset(CPU).train, count()
    repeated = sum(len(row) - len(row.unique()) for row in pool.draw(0, 0, 256))
    sizes = pool.class_sizes.tolist()
    return Pair(
        lambda: pool.draw(0, next(steps), 256), lambda: [torch.randperm(n)[:256] for n in sizes], float(repeated)
    )


def gather() -> Pair:
    """2,560 random images, normalised; the public code keeps the whole set so in float32."""
    dataset = CIFAR10.dataset(CPU)
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (dataset.mean, dataset.std))
    pool = dataset.train
    normalised = (pool.images.float() / 255 - mean) / std
    index = pool.draw(0, 0, 256).flatten()
    out = torch.empty(len(index), *dataset.image_shape)

    def ours() -> Tensor:
        return pool.gather(index, dtype=torch.float32, mean=dataset.mean, std=dataset.std, out=out)

    error = float((ours() - normalised[index]).abs().max())
    # A product and a sum, each rounded, of values up to 4.
    return Pair(ours, lambda: normalised[index], error, 4 * 2 * EPS)


# --- the drop-in calls -----------------------------------------------------------------------------------------------


def _network() -> ConvNet:
    return ConvNet(IMAGES, fastdm.Settings(network="ConvNet"))


def evaluation(ipc: int, epochs: int, tests: int) -> Pair:
    """Training and testing one network on `ipc` images per class, after the first has read the test set."""
    data = PublicImages(ipc, IMAGES)
    images = torch.stack([data[i][0] for i in range(len(data))])
    labels = torch.from_numpy(data.labels)
    loader = DataLoader(PublicImages(tests // CLASSES, IMAGES, seed=1), batch_size=256)
    args, start = public_arguments(epochs - 1), _network()

    def ours() -> float:
        torch.manual_seed(0)
        with contextlib.redirect_stdout(io.StringIO()):
            return float(evaluate_synset(0, copy.deepcopy(start), images, labels, loader, args)[2])

    def public() -> float:
        torch.manual_seed(0)
        return public_evaluate(copy.deepcopy(start), images, labels, loader, args)

    # Rounding may end in other weights; at most as other draws do, within three standard deviations of a difference.
    return Pair(ours, public, abs(ours() - public()), 3 * math.sqrt(0.5 / tests))


def real_images(per_class: int) -> Pair:
    """Reading all images into tensors and taking a batch of one class from them."""
    data = PublicImages(per_class, IMAGES)

    def ours() -> Tensor:
        real = RealImages((data.images, data.labels), mean=IMAGES.mean, std=IMAGES.std)
        np.random.seed(0)  # noqa: NPY002
        return real.get_images(3, 256)

    def public() -> Tensor:
        images = torch.cat([torch.unsqueeze(data[i][0], dim=0) for i in range(len(data))])
        real = PublicPool(images, (data[i][1] for i in range(len(data))), CLASSES)
        np.random.seed(0)  # noqa: NPY002
        return real.get_images(3, 256)

    # Each form rounds a handful of terms and constants, of up to 1 / std = 5: some 16 halves of an eps.
    return Pair(ours, public, float((ours() - public()).abs().max()), 16 * EPS)


def matching(ipc: int, batch_real: int) -> Pair:
    """The loss of one iteration and its gradient. The error is that of the loss without augmentation: the public loop
    draws others."""
    network, param = _network().requires_grad_(False), fastdm.ParamDiffAug()
    real = torch.randn(CLASSES, batch_real, *SHAPE)
    synthetic = torch.randn(CLASSES * ipc, *SHAPE, requires_grad=True)

    def with_gradient(loss: Tensor) -> float:
        torch.autograd.grad(loss, synthetic)
        return float(loss.detach())

    def ours(strategy: str = DSA_STRATEGY) -> float:
        return with_gradient(dm_loss(network.embed, synthetic, real, strategy, seed=0))

    def public(strategy: str = DSA_STRATEGY) -> float:
        augment = lambda images, c: fastdm.DiffAugment(images, strategy, seed=c, param=param)  # noqa: E731
        return with_gradient(summed_loss(network, real, synthetic, ipc, augment))

    # Means over n like values, added in another order, err by √n · eps at most; differences of means are as large as
    # 1/√n of the values, and their squares err twice as much.
    return Pair(ours, public, abs(ours("none") / public("none") - 1), 2 * batch_real * EPS)


# --- small sets ------------------------------------------------------------------------------------------------------

SMALL = [
    Workload("FashionMNIST ipc 1", 10, 28, 1, 100, 8, channels=1),
    Workload("CIFAR-10 ipc 1", 10, 32, 1, 100, 8),
    Workload("CIFAR-10 ipc 10", 10, 32, 10, 100, 8),
]


def training(work: Workload, epochs: int) -> Pair:
    """Training one network on a set, and testing it on one image of each class. Both draw numbers of their own."""
    return Pair(*trainings(work, CPU, 1, epochs, 1))


def condensation(work: Workload) -> Pair:
    """An iteration; the error is that of the step's benchmark."""
    checked, dataset = check(work, CPU, "fp32"), work.dataset(CPU)
    ours, public = (numbered(make(kind, work, dataset, CPU, "fp32")) for kind in ("fastdm", "public"))
    return Pair(ours, public, checked["error"], checked["tolerance"])


# --- all of them, and their tables -----------------------------------------------------------------------------------


def calls(smoke: bool) -> dict[str, Callable[[], Pair]]:
    """By name; smoke: with few images and epochs."""
    per_class, batch_real, epochs = (2, 2, 1) if smoke else (500, 64, 20)
    epochs_and_tests = {1: (1, 20)} if smoke else {1: (31, 1000), 10: (7, 230), 50: (3, 100)}
    works = [work.smoke() for work in SMALL[:1]] if smoke else SMALL
    return {
        "DiffAugment, 256 images, mode S": augment,
        "DiffAugment, 256 images, mode M": partial(augment, mode="M"),
        "draw of 256 images from each of 10 classes": draw,
        "2,560 real images in float32": gather,
        f"RealImages, {CLASSES * per_class:,} images": partial(real_images, per_class),
        **{f"dm_loss, ipc {ipc}": partial(matching, ipc, batch_real) for ipc in epochs_and_tests},
        **{f"evaluate_synset, ipc {ipc}": partial(evaluation, ipc, *size) for ipc, size in epochs_and_tests.items()},
        **{f"training, {epochs} epochs, {work.name}": partial(training, work, epochs) for work in works},
        **{f"iteration, batch_real 8, {work.name}": partial(condensation, work) for work in works if work.ipc == 1},
    }


def augmentations(numbers: Sequence[int]) -> dict[str, Row]:
    """By name, the arguments of `augment`, which the table shows."""
    kinds = itertools.product("SM", ("Siamese", "per image"), numbers, ("forward", "with gradient"))
    abouts = [dict(zip(("mode", "draws", "images", "direction"), kind, strict=True)) for kind in kinds]
    return {"{images:,} images, mode {mode}, {draws}, {direction}".format(**about): about for about in abouts}


def _quote_augment(rows: Sequence[Row]) -> str:
    """How many times as fast, a line for the batches of a kind, a column for every direction and number of threads."""
    lines: dict[tuple[str, ...], Row] = {}
    columns: dict[str, None] = {}
    for row in rows:
        number = row.get("threads")
        column = row["direction"] + (f", {number} thread{'s' if number > 1 else ''}" if number else "")
        about = {"mode": row["mode"], "parameters": row["draws"], "images": f"{row['images']:,}"}
        lines.setdefault((*about.values(),), about)[column] = row.get("ratio")
        columns[column] = None
    found = "; ".join(f"{column} | {column} | {{:.1f}}×" for column in columns)
    return cells.table(f"mode; parameters; images; {found}", [*lines.values()])


SUITE = Suite(
    "calls",
    "Calls",
    "What replaces a call of the public code, in ms by the clock, median (p20–p80), interleaved with it. "
    "evaluate_synset: 31 epochs and 1,000 test images (ipc 10: 7 and 230; ipc 50: 3 and 100); dm_loss: 64 real images "
    "per class. Below them, small sets: `fastdm.evaluate` and an iteration of `fastdm.condense`, compared with the "
    "public loops.",
    (*STEP, "evaluation", "compat"),
    """
    call | name; threads; ms | fastdm | ms; public, ms | public | ms; × public | ratio | .2f; error
    """,
    quoted="call | name; fastdm, ms | fastdm | median ms; public, ms | public | median ms; × | ratio | .1f",
    slower={"ratio": "of the public form"},
)
AUGMENT = dataclasses.replace(
    SUITE,
    name="augment",
    title="DiffAugment",
    text="`DiffAugment` and the public function, all six families, in ms by the clock, median (p20–p80), interleaved.",
    rooms=(*STEP, "compat"),
    quoted=_quote_augment,
)


def measure(make_pair: Callable[[], Pair], number: int, seconds: float) -> Row:
    with threads(number):
        pair = make_pair()
        row = records.judged(pair.error, pair.tolerance)
        if row["correct"]:
            functions = {"fastdm": pair.ours, "public": pair.public}
            row |= race(functions, CPU, ("public", "fastdm"), seconds=seconds, warm_up=1)
        return row


def rows(options: Namespace) -> Rows:
    about = augmentations(NUMBERS[:2] if options.smoke else NUMBERS) if options.what == "augment" else {}
    pairs = {name: partial(augment, **how) for name, how in about.items()} or calls(options.smoke)
    for number in options.threads or [torch.get_num_threads()]:
        threads_shown = {"threads": number} if options.threads else {}
        for name, make_pair in pairs.items():
            if name.startswith(tuple(options.only)):
                row = {"name": name, **about.get(name, {}), **threads_shown}
                yield row, partial(measure, make_pair, number, 0 if options.smoke else options.seconds)


if __name__ == "__main__":
    parser = arguments.parser(__doc__, what=("calls", "augment"), seconds=5.0)
    parser.add_argument("--only", nargs="+", default=[""], help="calls, by the beginning of their names")
    parser.add_argument("--threads", type=int, nargs="+", help="default: as many as PyTorch takes")
    options = parser.parse_args()
    records.record(SUITE if options.what == "calls" else AUGMENT, options, rows)
