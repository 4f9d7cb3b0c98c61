"""The calls that replace the public code's, each compared with the public form, interleaved.

    python -m bench.calls [--only evaluate_synset …] [--threads 1 2] [--seconds 5] [--smoke]
    python -m bench.calls augment [--images 1 10 256 1024] [the same options]

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
from argparse import Namespace
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

import fastdm
from bench.baselines.public_augment import diff_augment
from bench.baselines.public_evaluation import PublicImages, public_evaluate
from bench.baselines.public_step import ConvNet, random_dataset
from bench.harness import arguments, cells, records
from bench.harness.loops import Kind, check, make
from bench.harness.records import STEP, Recorder, Row, Suite
from bench.harness.timer import host_times, numbered, threads
from bench.harness.workloads import CIFAR10, CPU, Workload
from fastdm.augmentation import DSA_STRATEGY
from fastdm.compat import RealImages, dm_loss, evaluate_synset

CLASSES, SHAPE = 10, (3, 32, 32)
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
EPS = torch.finfo(torch.float32).eps

Call = Callable[[], object]


@dataclasses.dataclass(frozen=True)
class Pair:
    """A call of the package and the public one; error: of the former's result, and what it may be."""

    ours: Call
    public: Call
    error: float
    tolerance: float


# --- single calls ----------------------------------------------------------------------------------------------------


def augment(number: int = 256, mode: str = "S", siamese: bool = True, backward: bool = False) -> Pair:
    """The augmentation of one class and, if asked for, its gradient."""
    images = torch.randn(number, *SHAPE, generator=torch.Generator().manual_seed(0)).requires_grad_(backward)
    grad, param, seeds = torch.ones_like(images), fastdm.ParamDiffAug(), count(12)
    param.aug_mode = mode

    def run(function: Callable[..., Tensor], seed: int) -> Tensor:
        if not siamese:
            torch.default_generator.manual_seed(seed)
        out = function(images, DSA_STRATEGY, seed if siamese else -1, param)
        return torch.autograd.grad(out, images, grad)[0] if out.requires_grad else out

    ours, public = (partial(run, function) for function in (fastdm.DiffAugment, diff_augment))
    error = max(float((ours(seed) - public(seed)).abs().max()) for seed in range(12))
    # The public code's own float32 sampling grid is 1.2e-5 from float64, in mode M twice, and the gradient of a pixel
    # collects weights that add up to 1.5² at most.
    tolerance = 2.5e-5 * (2.25 if backward else 1)
    return Pair(lambda: ours(next(seeds)), lambda: public(next(seeds)), error, tolerance)


def draw() -> Pair:
    """256 distinct images of each of ten classes; the public code permutes each class. The error counts repetitions."""
    pool = CIFAR10.dataset(CPU).train
    steps = count()
    repeated = sum(len(row) - len(row.unique()) for row in pool.draw(0, 0, 256))
    sizes = pool.class_sizes.tolist()

    def public() -> object:
        return [torch.randperm(n)[:256] for n in sizes]

    return Pair(lambda: pool.draw(0, next(steps), 256), public, float(repeated), 0.0)


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
    return ConvNet(random_dataset([1] * CLASSES, SHAPE), fastdm.Settings(network="ConvNet"))


def _arguments(epochs: int) -> Namespace:
    return Namespace(
        device="cpu",
        lr_net=0.01,
        epoch_eval_train=epochs,
        batch_train=256,
        dsa=True,
        dsa_strategy=DSA_STRATEGY,
        dsa_param=fastdm.ParamDiffAug(),
    )


def evaluation(ipc: int, epochs: int, tests: int) -> Pair:
    """Training and testing one network on `ipc` images per class, after the first has read the test set."""
    data = PublicImages(ipc, CLASSES, SHAPE, MEAN, STD)
    images = torch.stack([data[i][0] for i in range(len(data))])
    labels = torch.from_numpy(data.labels)
    loader = DataLoader(PublicImages(tests // CLASSES, CLASSES, SHAPE, MEAN, STD, seed=1), batch_size=256)
    args = _arguments(epochs - 1)
    start = _network()

    def ours() -> float:
        torch.manual_seed(0)
        with contextlib.redirect_stdout(io.StringIO()):
            return float(evaluate_synset(0, copy.deepcopy(start), images, labels, loader, args)[2])

    def public() -> float:
        torch.manual_seed(0)
        return public_evaluate(copy.deepcopy(start), images, labels, loader, args)

    return Pair(ours, public, abs(ours() - public()), 0.0)


def real_images(per_class: int) -> Pair:
    """Reading all images into tensors and taking a batch of one class from them."""
    data = PublicImages(per_class, CLASSES, SHAPE, MEAN, STD)

    def ours() -> Tensor:
        real = RealImages((data.images, data.labels), mean=MEAN, std=STD)
        np.random.seed(0)  # noqa: NPY002
        return real.get_images(3, 256)

    def public() -> Tensor:
        images = torch.cat([torch.unsqueeze(data[i][0], dim=0) for i in range(len(data))])
        indices: list[list[int]] = [[] for _ in range(CLASSES)]
        for i in range(len(data)):
            indices[data[i][1]].append(i)
        np.random.seed(0)  # noqa: NPY002
        return images[np.random.permutation(indices[3])[:256]]  # noqa: NPY002

    # Each form rounds a handful of terms and constants, of up to 1 / std = 5: some 16 halves of an eps.
    return Pair(ours, public, float((ours() - public()).abs().max()), 16 * EPS)


def matching(ipc: int, batch_real: int) -> Pair:
    """The loss of one iteration and its gradient. The error is that of the loss without augmentation: the public loop
    draws others."""
    network, param = _network().requires_grad_(False), fastdm.ParamDiffAug()
    real = torch.randn(CLASSES, batch_real, *SHAPE)
    synthetic = torch.randn(CLASSES * ipc, *SHAPE, requires_grad=True)

    def ours(strategy: str = DSA_STRATEGY) -> Tensor:
        loss = dm_loss(network.embed, synthetic, real, strategy, seed=0)
        torch.autograd.grad(loss, synthetic)
        return loss.detach()

    def public(strategy: str = DSA_STRATEGY) -> Tensor:
        loss = torch.zeros(())
        for c in range(CLASSES):
            seen = fastdm.DiffAugment(real[c], strategy, seed=c, param=param)
            learnt = fastdm.DiffAugment(synthetic[c * ipc : (c + 1) * ipc], strategy, seed=c, param=param)
            target = network.embed(seen).detach()
            loss = loss + torch.sum((target.mean(0) - network.embed(learnt).mean(0)) ** 2)
        torch.autograd.grad(loss, synthetic)
        return loss.detach()

    # Means over n like values, added in another order, err by √n · eps at most; differences of means are as large as
    # 1/√n of the values, and their squares err twice as much.
    return Pair(ours, public, float(abs(ours("none") / public("none") - 1)), 2 * batch_real * EPS)


# --- small sets ------------------------------------------------------------------------------------------------------

KINDS: tuple[Kind, Kind] = ("fastdm", "public")
SMALL = [
    Workload("FashionMNIST ipc 1", 10, 28, 1, 100, 8, channels=1),
    Workload("CIFAR-10 ipc 1", 10, 32, 1, 100, 8),
    Workload("CIFAR-10 ipc 10", 10, 32, 10, 100, 8),
]


def training(work: Workload, epochs: int) -> Pair:
    """Training one network on a set, and testing it on one image of each class. Both draw numbers of their own."""
    dataset = dataclasses.replace(work, class_size=1).dataset(CPU)
    dataset = dataclasses.replace(dataset, test=dataset.train)
    images = torch.randn(work.classes * work.ipc, *dataset.image_shape, generator=torch.Generator().manual_seed(0))
    condensed = fastdm.SyntheticSet(images, dataset.class_names, dataset.mean, dataset.std, dataset.name, {})
    tests = PublicImages(1, work.classes, dataset.image_shape, dataset.mean, dataset.std)
    loader, args, seeds = DataLoader(tests, batch_size=256), _arguments(epochs), count()

    def ours() -> object:
        return fastdm.evaluate(condensed, dataset, num_eval=1, epochs=epochs, seed=next(seeds), device=CPU)

    def public() -> object:
        network = ConvNet(dataset, fastdm.Settings(network="ConvNet"))
        return public_evaluate(network, images, condensed.labels, loader, args)

    return Pair(ours, public, 0.0, 0.0)


def condensation(work: Workload) -> Pair:
    """An iteration; the error is that of the step's benchmark."""
    checked, dataset = check(work, CPU, "fp32"), work.dataset(CPU)
    ours, public = (numbered(*make(kind, work, dataset, CPU, "fp32"), 0) for kind in KINDS)
    return Pair(ours, public, checked["error"], checked["tolerance"])


def small_sets(smoke: bool) -> dict[str, Callable[[], Pair]]:
    epochs, works = (1, [work.smoke() for work in SMALL[:1]]) if smoke else (20, SMALL)
    return {
        **{f"training, {epochs} epochs, {work.name}": partial(training, work, epochs) for work in works},
        **{f"iteration, batch_real 8, {work.name}": partial(condensation, work) for work in works if work.ipc == 1},
    }


def calls(smoke: bool) -> dict[str, Callable[[], Pair]]:
    """By name; smoke: with few images and epochs."""
    per_class, batch_real = (2, 2) if smoke else (500, 64)
    epochs_and_tests = {1: (1, 20)} if smoke else {1: (31, 1000), 10: (31, 1000), 50: (7, 230)}
    return {
        "DiffAugment, 256 images, mode S": augment,
        "DiffAugment, 256 images, mode M": partial(augment, mode="M"),
        "draw of 256 images from each of 10 classes": draw,
        "2,560 real images in float32": gather,
        f"RealImages, {CLASSES * per_class:,} images": partial(real_images, per_class),
        **{f"dm_loss, ipc {ipc}": partial(matching, ipc, batch_real) for ipc in epochs_and_tests},
        **{f"evaluate_synset, ipc {ipc}": partial(evaluation, ipc, *size) for ipc, size in epochs_and_tests.items()},
        **small_sets(smoke),
    }


def measure(make: Callable[[], Pair], seconds: float) -> Row:
    pair = make()
    row: Row = {"error": pair.error, "tolerance": pair.tolerance, "correct": pair.error <= pair.tolerance}
    if row["correct"]:
        times = host_times({"fastdm": pair.ours, "public": pair.public}, CPU, seconds=seconds, warm_up=0)
        row["seconds"] = records.spreads(times)
        row["ratio"] = row["seconds"]["public"]["median"] / row["seconds"]["fastdm"]["median"]
    return row


# --- tables ----------------------------------------------------------------------------------------------------------

COLUMNS = cells.columns(
    """
    call | name; threads; ms | fastdm | ms; public, ms | public | ms; × public | ratio | .2f
    error; median error | median_error
    """
)


def _quote(rows: Sequence[Row]) -> str:
    def median(form: str) -> cells.Cell:
        return lambda row: cells.spread_text({"n": 1, "median": row["seconds"][form]["median"]}, 1e-3)

    columns = [("call", cells.text("name")), ("fastdm, ms", median("fastdm")), ("public, ms", median("public"))]
    return cells.table([*columns, ("×", cells.number("ratio", "{:.1f}"))], [row for row in rows if "ratio" in row])


def _quote_augment(rows: Sequence[Row]) -> str:
    """How many times as fast, a line for the batches of a kind, a column for every direction and number of threads."""
    lines: dict[tuple[str, str, int], Row] = {}
    found: dict[str, None] = {}
    for row in rows:
        threads = f", {row['threads']} thread{'s' if row['threads'] > 1 else ''}" if "threads" in row else ""
        column = row["direction"] + threads
        found[column] = None
        line = lines.setdefault((row["mode"], row["draws"], row["images"]), {})
        line |= {"mode": row["mode"], "parameters": row["draws"], "images": row["images"], column: row.get("ratio")}
    columns = [(key, cells.text(key)) for key in ("mode", "parameters")]
    columns.append(("images", lambda row: f"{row['images']:,}"))
    columns += [(column, cells.number(column, "{:.1f}×")) for column in found]
    return cells.table(columns, list(lines.values()))


SUITE = Suite(
    "calls",
    "Calls",
    "What replaces a call of the public code, in ms by the clock, median (p20–p80), interleaved with it. "
    "evaluate_synset: 31 epochs and 1,000 test images (ipc 50: 7 and 230); dm_loss: 64 real images per class. Below "
    "them, small sets: `fastdm.evaluate` and an iteration of `fastdm.condense`, compared with the public loops.",
    (*STEP, "evaluation", "compat"),
    COLUMNS,
    quote=_quote,
    slower=lambda row: f"{1 / row['ratio']:.2f}× the time of the public form" if row.get("ratio", 1) < 1 else "",
)
AUGMENT = dataclasses.replace(
    SUITE,
    name="augment",
    title="DiffAugment",
    text="`DiffAugment` and the public function, all six families, in ms by the clock, median (p20–p80), interleaved.",
    rooms=(*STEP, "compat"),
    quote=_quote_augment,
)


def augmentations(numbers: Sequence[int]) -> dict[str, tuple[Row, Callable[[], Pair]]]:
    """By name, what the table says of each, and how it is made."""
    chosen: dict[str, tuple[Row, Callable[[], Pair]]] = {}
    for mode, siamese, images, backward in itertools.product("SM", (True, False), numbers, (False, True)):
        about: Row = {
            "images": images,
            "mode": mode,
            "draws": "Siamese" if siamese else "per image",
            "direction": "with gradient" if backward else "forward",
        }
        name = f"{images:,} images, mode {mode}, {about['draws']}, {about['direction']}"
        chosen[name] = about, partial(augment, images, mode, siamese, backward)
    return chosen


def main() -> None:
    parser = arguments.parser(__doc__, seconds=5.0)
    parser.add_argument("what", nargs="?", choices=("calls", "augment"), default="calls")
    parser.add_argument("--only", nargs="+", default=[""], help="calls, by the beginning of their names")
    parser.add_argument("--images", type=int, nargs="+", default=[1, 10, 256, 1024], help="of `augment`")
    parser.add_argument("--threads", type=int, nargs="+", help="default: as many as PyTorch takes")
    options = parser.parse_args()
    suite = SUITE if options.what == "calls" else AUGMENT
    chosen: dict[str, tuple[Row, Callable[[], Pair]]] = {
        name: ({}, make) for name, make in calls(options.smoke).items()
    }
    if suite is AUGMENT:
        chosen = augmentations(options.images)
    recorder = Recorder(suite, {"smoke": options.smoke})
    for number, (name, (about, pair)) in itertools.product(
        options.threads or [torch.get_num_threads()], chosen.items()
    ):
        if name.startswith(tuple(options.only)):
            row: Row = {"name": name} | about | ({"threads": number} if options.threads else {})
            with threads(number):
                recorder.add(row, partial(measure, pair, 0 if options.smoke else options.seconds))


if __name__ == "__main__":
    main()
