"""A whole iteration: from the public loop to a CUDA graph, stage by stage, and at the sizes that people condense.

python -m bench.iteration waterfall [--device cuda] [--smoke] [--batch_real 256]
python -m bench.iteration scale [--device cuda] [--smoke] [--seconds 90]
python -m bench.iteration evaluation [--device cuda] [--smoke]

waterfall: the losses of every stage are held against those of the public loop with equal draws; a stage whose losses
are off has no speed. scale: the package's step beside the public loop, and its peak memory beside its plan.
evaluation: the training of 20 networks on a condensed set.
"""

import dataclasses
import re
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench import peaks, public_loop, results
from bench.timer import host_times, synchronise
from bench.workloads import CIFAR10, CPU, SCALE, Workload
from fastdm.augmentation import Strategy
from fastdm.condensation.build import build_step
from fastdm.condensation.settings import Settings
from fastdm.data.pool import Dataset
from fastdm.kernels import draw
from fastdm.kernels.augmentation import reference
from fastdm.networks.architectures import build_network
from fastdm.networks.model import initialise
from fastdm.synthetic.initial import initial_images
from fastdm.system.device import precision_context

ITERATIONS_CHECKED = 2

TOLERANCE = {"fp32": 1e-4, "tf32": 2**-10, "bf16": 2**-7}
"""Of the relative error of a loss. For tf32 and bf16 the spacing of the operands, whose roundings average out over the
features; for fp32 that of the tests: the loss is the square of small differences of means."""


class PublicLoop:
    """The public loop with its own draws: a new network, and one class after the other.

    As the public code, it holds the real images normalised in float32 on the device.
    """

    def __init__(self, dataset: Dataset, settings: Settings, device: torch.device) -> None:
        self._settings = settings.resolve(dataset, device)
        self._device = device
        self._strategy = self._settings.strategy or "none"
        channels, size, _ = dataset.image_shape
        width, depth = width_depth(self._settings)
        self._classes = dataset.num_classes
        self._network = lambda: public_loop.ConvNet(channels, self._classes, size, width, depth).to(device)
        mean, std = (torch.tensor(v, device=device).view(-1, 1, 1) for v in (dataset.mean, dataset.std))
        pool = dataset.train.images
        self._real = torch.empty(pool.shape, device=device)
        for part, into in zip(pool.split(4096), self._real.split(4096), strict=True):
            into.copy_((part.to(device) / 255 - mean) / std)
        self._offsets = dataset.train.class_offsets.tolist()
        self.images = initial_images(
            dataset, self._settings.ipc, self._settings.seed, init=self._settings.init, device=device
        ).requires_grad_()
        self._optimiser = torch.optim.SGD([self.images], lr=1.0, momentum=0.5)

    def __call__(self, iteration: int) -> float:
        def augment(images: Tensor, c: int) -> Tensor:
            seed = iteration * self._classes + c
            return public_loop.diff_augment(images, self._strategy, seed, self._settings.aug_mode)

        ipc = self._settings.ipc
        loss = public_loop.iteration(self._network(), self._batches(), self.images, ipc, self._optimiser, augment)  # type: ignore[no-untyped-call]
        return loss / self._classes

    def _batches(self) -> Iterator[Tensor]:
        """A fresh random batch of each class, drawn when the loop comes to it."""
        for first, last in pairwise(self._offsets):
            index = first + torch.randperm(last - first)[: self._settings.batch_real]
            yield self._real[index.to(self._device)]


def width_depth(settings: Settings) -> tuple[int, int]:
    """Of the ConvNet that resolved settings name."""
    found = re.fullmatch(r"ConvNet(?:W(\d+)|D(\d+))?", settings.network or "")
    assert found is not None
    return int(found[1] or 128), int(found[2] or 3)


class PlainStep:
    """The iteration in plain PyTorch with all classes in one batch: what one writes for torch.compile.

    It draws what the package's step draws, and none of the package's kernels computes images, features or the loss.
    """

    def __init__(
        self, dataset: Dataset, settings: Settings, device: torch.device, dtype: torch.dtype, compiled: bool
    ) -> None:
        settings = settings.resolve(dataset, device)
        assert settings.network is not None
        self.images = initial_images(dataset, settings.ipc, settings.seed, init=settings.init, device=device)
        self._velocity = torch.zeros_like(self.images)
        self._settings, self._dtype = settings, dtype
        self._strategy = Strategy.parse(settings.strategy)
        classes, ipc = dataset.num_classes, settings.ipc
        self._key = torch.tensor([settings.seed, 0], device=device)
        self._classes = torch.arange(classes, device=device)
        self._offsets = dataset.train.class_offsets.to(device)
        self._pool = dataset.train.images.to(device)
        self._mean, self._std = (torch.tensor(v, device=device) for v in (dataset.mean, dataset.std))
        self._real_group = self._classes.repeat_interleave(settings.batch_real)
        self._synthetic_group = self._classes.repeat_interleave(ipc)
        self._network = build_network(
            settings.network,
            channels=dataset.image_shape[0],
            num_classes=classes,
            image_size=dataset.image_shape[1:],
            frozen=True,
        ).to(device, dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]

        def loss(weights: list[Tensor], real: Tensor, synthetic: Tensor) -> Tensor:
            with torch.no_grad():
                real_means = _embed(weights, real).view(classes, -1, self._network.num_features).float().mean(1)
            means = _embed(weights, synthetic).view(classes, ipc, -1).float().mean(1)
            return (real_means - means).square().sum()

        on_gpu = device.type == "cuda"
        # On a CPU the reference picks the images of each family, which torch.compile cannot follow.
        self._dsa = torch.compile(reference.dsa, dynamic=False) if compiled and on_gpu else reference.dsa
        self._loss = torch.compile(loss, dynamic=False) if compiled else loss

    def __call__(self, iteration: int) -> Tensor:
        self._key[1] = iteration
        initialise(self._network, self._key)
        weights = [layer.weight for layer in self._network.modules() if isinstance(layer, nn.Conv2d)]
        index = draw(self._key, self._offsets, self._settings.batch_real).flatten()
        (table,) = self._strategy.draw(self._key, self._classes, (self.images.shape[2], self.images.shape[3]))
        real = self._dsa(self._pool, table, self._real_group, index, self._mean, self._std, self._dtype, True)
        self.images.requires_grad_()
        learnt = self._dsa(self.images, table, self._synthetic_group, None, None, None, self._dtype, True)
        loss = self._loss(weights, real, learnt)
        (gradient,) = torch.autograd.grad(loss, self.images)
        self.images.requires_grad_(False)
        self._velocity.mul_(self._settings.momentum).add_(gradient)
        self.images.sub_(self._velocity, alpha=self._settings.lr_img or 1.0)
        return loss.detach() / len(self._classes)


def _embed(weights: list[Tensor], x: Tensor) -> Tensor:
    for weight in weights:
        x = F.conv2d(x, weight, padding=1)
        x = F.avg_pool2d(F.relu(F.group_norm(x, x.shape[1])), 2)
    return x.flatten(1)


# --- waterfall -------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Stage:
    """what: in words; build: the iteration, made for a (dataset, settings, device, dtype)."""

    name: str
    what: str
    precision: str
    build: Callable[[Dataset, Settings, torch.device, torch.dtype], Callable[[int], Tensor | float]]


def _public(dataset: Dataset, settings: Settings, device: torch.device, _: torch.dtype) -> Callable[[int], float]:
    return PublicLoop(dataset, settings, device)


def _ours(dataset: Dataset, settings: Settings, device: torch.device, dtype: torch.dtype) -> Callable[[int], Tensor]:
    return build_step(dataset, settings.resolve(dataset, device), device, dtype)[0]


def _graph(dataset: Dataset, settings: Settings, device: torch.device, dtype: torch.dtype) -> Callable[[int], Tensor]:
    step = build_step(dataset, settings.resolve(dataset, device), device, dtype)[0]
    step.capture()
    return step


def stages(device: torch.device, compiled: bool) -> list[Stage]:
    on_gpu = device.type == "cuda"
    single = "tf32" if on_gpu else "fp32"
    chosen = [
        Stage("public", "the public loop, one class after the other", single, _public),
        Stage("batched", "all classes in one batch, eager PyTorch", single, partial(PlainStep, compiled=False)),
        Stage("batched bf16", "the same in bfloat16, channels-last", "bf16", partial(PlainStep, compiled=False)),
        Stage("compiled bf16", "the same through torch.compile", "bf16", partial(PlainStep, compiled=True)),
        Stage("fastdm", "the package's ops", single, _ours),
        Stage("fastdm bf16", "the same in bfloat16", "bf16", _ours),
        Stage("fastdm bf16 graph", "the same as one CUDA graph", "bf16", _graph),
    ]
    return [
        stage
        for stage in chosen
        if (on_gpu or "graph" not in stage.name) and (compiled or "compiled" not in stage.name)
    ]


def waterfall(
    work: Workload, device: torch.device, seconds: float, compiled: bool, save: Callable[[list[dict[str, Any]]], Path]
) -> None:
    """Build and check stage after stage, then time all that are right, in turn."""
    dataset, settings = work.dataset(device), work.settings()
    peak = peaks.measured(device)
    rows: list[dict[str, Any]] = []
    running: dict[str, Callable[[], object]] = {}
    exact = _public_losses(dataset, settings)
    for stage in stages(device, compiled):
        row: dict[str, Any] = {"name": stage.name, "what": stage.what, "precision": stage.precision}
        rows.append(row)
        try:
            chosen = dataclasses.replace(settings, precision=stage.precision)  # type: ignore[arg-type]
            is_public = stage.name == "public"
            # The public loop runs as PyTorch sets itself up: TF32 in convolutions only, no choice by trial.
            flags = nullcontext if is_public else _flags(chosen, device)
            with flags():
                begin = time.perf_counter()
                dtype = torch.bfloat16 if stage.precision == "bf16" else torch.float32
                call = stage.build(dataset, chosen, device, dtype)
                losses = [float(call(iteration)) for iteration in range(ITERATIONS_CHECKED)]
                row["start_seconds"] = round(time.perf_counter() - begin, 2)
            # What is timed of the public loop draws for itself; its losses with equal draws are the yardstick.
            row["losses"] = exact if is_public else losses
            row["error"] = max(abs(a - b) / b for a, b in zip(row["losses"], exact, strict=True))
            row["tolerance"] = TOLERANCE[stage.precision]
            row["correct"] = row["error"] <= row["tolerance"]
            if row["correct"]:
                running[stage.name] = _Running(call, flags)
        except Exception as error:  # A stage that cannot be built must leave the others.
            row["failure"] = f"{type(error).__name__}: {error}"[:400]
        print({key: value for key, value in row.items() if key != "what"}, flush=True)
        save(rows)
    times = host_times(running, device, seconds=seconds, warm_up=0)  # The check was its warm-up.
    medians = {name: results.spread(values) for name, values in times.items()}
    for row in rows:
        if row["name"] in medians:
            spread = medians[row["name"]]
            row["seconds"] = {"iteration": spread}
            row |= work_done(work, row["precision"], spread["median"], peak)
            for base in ("public", "compiled bf16"):
                if base in medians:
                    row[f"times_{base.replace(' ', '_')}"] = medians[base]["median"] / spread["median"]
    save(rows)


def work_done(work: Workload, precision: str, seconds: float, peak: dict[str, float]) -> dict[str, Any]:
    """What an iteration computes and the least that it must move, and how that compares with the peak of products."""
    flops = work.flops()
    row = {"flops": flops, "least_bytes": work.bytes(precision), "tflop_per_s": flops / seconds / 1e12}
    if limit := peak.get(f"matmul {precision}"):
        row["percent_of_matmul"] = 100 * flops / seconds / limit
    return row


class _Running:
    """Calls a stage with the numbers of the iterations that follow the check."""

    def __init__(self, call: Callable[[int], object], flags: Callable[[], AbstractContextManager[Any]]) -> None:
        self._call, self._flags = call, flags
        self._iteration = ITERATIONS_CHECKED

    def __call__(self) -> None:
        with self._flags():
            self._call(self._iteration)
        self._iteration += 1


def _flags(settings: Settings, device: torch.device) -> Callable[[], AbstractContextManager[Any]]:
    return lambda: precision_context(settings.precision, device, deterministic=settings.deterministic)


def _public_losses(dataset: Dataset, settings: Settings) -> list[float]:
    """Of the public loop in float32 on the CPU, with the draws that the other stages make."""
    from tests.oracles import public_run

    dataset = dataclasses.replace(dataset, train=dataset.train.to(CPU))
    _, losses = public_run(dataset, settings, ITERATIONS_CHECKED, torch.float32)
    return losses


# --- scale -----------------------------------------------------------------------------------------------------------


def scale(
    works: list[Workload], device: torch.device, seconds: float, save: Callable[[list[dict[str, Any]]], Path]
) -> None:
    """One row per size: the step as `condense` runs it, the public loop beside it, memory beside the plan."""
    peak = peaks.measured(device)
    rows: list[dict[str, Any]] = []
    start = time.perf_counter()
    for number, work in enumerate(works):
        left = seconds - (time.perf_counter() - start)
        if left <= 0:
            print("out of time")
            break
        row: dict[str, Any] = {"name": work.name, **dataclasses.asdict(work)}
        rows.append(row)
        try:
            row |= _scale_row(work, device, left / (len(works) - number), peak)
        except Exception as error:  # One size's failure must leave the others.
            row["failure"] = f"{type(error).__name__}: {error}"[:400]
        if device.type == "cuda":
            torch.cuda.empty_cache()
        print(row, flush=True)
        save(rows)


def _scale_row(work: Workload, device: torch.device, seconds: float, peak: dict[str, float]) -> dict[str, Any]:
    dataset = work.dataset(device)
    settings = work.settings().resolve(dataset, device)
    row: dict[str, Any] = {"precision": settings.precision}
    flags = _flags(settings, device)
    with flags() as dtype:
        before = _restart_peak(device)
        step, plan = build_step(dataset, settings, device, dtype)
        step(0)
        row["peak_bytes"] = _peak(device) - before + plan.pool_bytes  # The pool was there before.
        row["planned_bytes"] = plan.pool_bytes + plan.images_bytes + plan.real_bytes + plan.synthetic_bytes
        row["chunks"] = -(-work.classes // plan.chunk_classes)
        row["graph"] = _captured(step, row)
        running = _Running(step, flags)
        running()
    functions: dict[str, Callable[[], object]] = {"fastdm": running}
    times = host_times(functions, device, rounds=10, seconds=seconds / 3, warm_up=1)
    del step, running, functions  # The public loop needs the memory.
    if device.type == "cuda":
        row["reserved_bytes"] = torch.cuda.memory_reserved(device)
        torch.cuda.empty_cache()
    try:
        public = PublicLoop(dataset, settings, device)
        times |= host_times({"public": _Running(public, nullcontext)}, device, rounds=3, seconds=seconds / 3, warm_up=1)
    except torch.cuda.OutOfMemoryError:
        row["public"] = "out of memory"
    row["seconds"] = {name: results.spread(values) for name, values in times.items()}
    median = row["seconds"]["fastdm"]["median"]
    row |= work_done(work, str(settings.precision), median, peak)
    if "public" in row["seconds"]:
        row["times_public"] = row["seconds"]["public"]["median"] / median
    return row


def _captured(step: Any, row: dict[str, Any]) -> bool:
    """Whether the step runs as a CUDA graph, as `condense` would have it."""
    if not torch.cuda.is_available():
        return False
    try:
        step.capture()
    except RuntimeError as error:
        row["capture_failure"] = str(error)[:200]
        return False
    return True


def _restart_peak(device: torch.device) -> int:
    """Bytes in use: of tensors on a GPU, of the process on a CPU (Linux). Their peak is counted from here."""
    synchronise(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    Path("/proc/self/clear_refs").write_text("5")
    return _process_bytes("VmRSS")


def _peak(device: torch.device) -> int:
    synchronise(device)
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _process_bytes("VmHWM")


def _process_bytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


# --- evaluation ------------------------------------------------------------------------------------------------------


def evaluation(device: torch.device, smoke: bool, save: Callable[[list[dict[str, Any]]], Path]) -> None:
    """Seconds to train networks on a condensed set of CIFAR-10's size and to test them; on a CPU fewer and shorter."""
    from fastdm.evaluation.measure import evaluate
    from fastdm.synthetic.synthetic_set import SyntheticSet

    on_gpu = device.type == "cuda"
    networks, epochs = (2, 2) if smoke else (20, 20) if on_gpu else (2, 10)
    rows = []
    for work in [work.smoke() if smoke else work for work in SCALE[: 3 if on_gpu else 2]]:
        tests = 1000 if on_gpu and not smoke else 16
        dataset = dataclasses.replace(work, class_size=tests).dataset(CPU)
        dataset = dataclasses.replace(dataset, test=dataset.train)
        images = initial_images(dataset, work.settings().ipc, work.settings().seed)
        condensed = SyntheticSet(images, dataset.class_names, dataset.mean, dataset.std, dataset.name, {})
        evaluate(condensed, dataset, num_eval=1, epochs=1, device=device)
        synchronise(device)
        start = time.perf_counter()
        evaluate(condensed, dataset, num_eval=networks, epochs=epochs, device=device)
        synchronise(device)
        elapsed = time.perf_counter() - start
        rows.append(
            {
                "name": work.name,
                "networks": networks,
                "epochs": epochs,
                "test_images": tests * work.classes,
                "seconds": {"all": results.spread([elapsed])},
                "networks_epochs_per_s": networks * epochs / elapsed,
            }
        )
        print(rows[-1], flush=True)
        save(rows)


def main() -> None:
    parser = peaks.parser(__doc__)
    parser.add_argument("what", choices=("waterfall", "scale", "evaluation"))
    parser.add_argument("--seconds", type=float, default=30.0, help="for the timing, about")
    parser.add_argument("--batch_real", type=int, default=256, help="real images per class in the waterfall")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    arguments = parser.parse_args()
    device = peaks.device_of(arguments)
    settings = {"smoke": arguments.smoke, "batch_real": arguments.batch_real}

    def save(rows: list[dict[str, Any]]) -> Path:
        return results.save(arguments.what, rows, settings, arguments.device)

    if arguments.what == "waterfall":
        work = dataclasses.replace(CIFAR10, batch_real=arguments.batch_real)
        work = work.smoke() if arguments.smoke else work
        waterfall(work, device, arguments.seconds, not arguments.no_compile, save)
    elif arguments.what == "scale":
        works = [work.smoke() for work in SCALE] if arguments.smoke else SCALE
        scale(works if device.type == "cuda" or arguments.smoke else SCALE[:2], device, arguments.seconds, save)
    else:
        evaluation(device, arguments.smoke, save)


if __name__ == "__main__":
    main()
