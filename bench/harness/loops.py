"""The loops that are timed, ours and those that it is compared with, and how far a change of the images may be off."""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import DataLoader

import fastdm
from bench.baselines.plain_step import PlainStep
from bench.baselines.public_evaluation import public_arguments, public_evaluate
from bench.baselines.public_images import PublicImages
from bench.baselines.public_step import ConvNet, PublicStep
from bench.harness.records import Row, judged
from bench.harness.workloads import CPU, Workload
from fastdm.condensation.build import build_step
from fastdm.condensation.plan import MemoryPlan
from fastdm.condensation.step import Step
from fastdm.data import Dataset
from fastdm.networks.architectures import build_network
from fastdm.networks.trained import NetworkPool, flatten_parameters
from fastdm.system.device import chosen_backend, precision_context

Iteration = Callable[[int], Tensor | float]
Kind = Literal["public", "batched", "compiled", "compiled graph", "fastdm", "graph"]

LOSS_TOLERANCE = {"fp32": 1e-4, "tf32": 2**-10, "bf16": 2**-7}
"""For the relative error of a loss. For tf32 and bf16 the spacing of the operands, whose roundings average out over the
features; for fp32 that of the tests: the loss is the square of small differences of means."""

_FLIPS = 0.4  # density of N(0, 1) at 0


def _tolerance(rounding: float) -> float:
    """For the error of a change of the images, in norm and relative to its own length.

    A normalised activation, of unit variance, errs by `rounding`, so that 2 · rounding · φ(0) of them come to the other
    side of a ReLU, where a gradient entry is wrong by itself: the root of three times that in three layers. Allowed is
    twice as much; plain PyTorch meets such values too.
    """
    return 2 * math.sqrt(3 * 2 * rounding * _FLIPS)


ROUNDING = {"fp32": 3e-6, "tf32": 2**-11, "bf16": 2**-8}
"""For fp32 that of Winograd's F(4×4, 3×3), some ten times that of a float32 sum; else that of the operands."""
MEDIAN_TOLERANCE = {"fp32": 2e-5, "tf32": _tolerance(2**-11), "bf16": _tolerance(2**-8)}
"""For the median over the images of each one's error. In fp32 most images (nine of ten in the worst of the cases) have
no activation on the other side of a ReLU, so that only rounding is left. A convolution adds 3e-6 to the features,
independently in each image, and 3e-6 to the gradient on its way back. The gradient starts at a difference of means over
images, in which 3/4 of the features' deviation is left (the rest all images share), so that their error counts 4/3. The
first convolution is not Winograd's, and errs far less: in four layers it makes √3 · 3e-6 · √(1 + (4/3)²) = 8.7e-6.
Allowed is twice that, rounded up. In tf32 and bf16 every image has such activations."""


def build(
    work: Workload,
    dataset: Dataset,
    device: torch.device,
    dtype: torch.dtype,
    precision: str,
    chunk_memory: int | None = None,
) -> tuple[Step, MemoryPlan]:
    """The package's step and its plan; chunk_memory: bytes of a chunk of classes."""
    settings = work.settings(precision=precision).resolve(dataset, device)
    pool = _random_pool(dataset, settings.network or "") if settings.networks == "trained" else None
    return build_step(dataset, settings, device, dtype, chunk_memory, pool)


def _random_pool(dataset: Dataset, network: str, networks: int = 2, states: int = 8) -> NetworkPool:
    """Random weights in the place of trained ones, which would take as long; always the same."""
    shape, classes = dataset.image_shape, dataset.num_classes
    draw = partial(build_network, network, channels=shape[0], num_classes=classes, image_size=shape[1:], affine=False)
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        rows = torch.stack([flatten_parameters(draw()) for _ in range(networks * states)])
    return NetworkPool(rows.view(networks, states, -1), network, shape, classes, dataset.name)


def make(kind: Kind, work: Workload, dataset: Dataset, device: torch.device, precision: str) -> Iteration:
    """An iteration. The public loop runs as PyTorch sets itself up: TF32 in convolutions only, no choice by trial."""
    settings = work.settings(precision=precision)
    if kind == "public":
        return PublicStep(dataset, settings, device)
    flags = partial(precision_context, settings.precision, device)
    step: PlainStep | Step
    with flags() as dtype:
        if kind in ("fastdm", "graph"):
            step = build(work, dataset, device, dtype, precision)[0]
            if kind == "graph" and (reason := step.capture()):
                raise RuntimeError(reason)
        else:
            step = PlainStep(dataset, settings, device, dtype, compiled=kind != "batched")
            if kind == "compiled graph":
                step.capture()
    return flags()(step)


def plain_losses(work: Workload, dataset: Dataset, iterations: int) -> list[float]:
    """Those of the package's step through PyTorch's own layers, in float32 on the CPU."""
    on_cpu = dataclasses.replace(dataset, train=dataset.train.to(CPU))
    with chosen_backend("reference"):
        step = build(work, on_cpu, CPU, torch.float32, "fp32")[0]
        return [float(step(iteration)) for iteration in range(iterations)]


def trainings(
    work: Workload, device: torch.device, networks: int, epochs: int, class_tests: int, precision: Any = None
) -> tuple[Callable[[], object], Callable[[], object]]:
    """Training networks on a condensed set and testing them, through `fastdm.evaluate` and, one by one, as the public
    code does. Both draw numbers of their own. precision: of the former."""
    dataset = dataclasses.replace(work, class_size=class_tests).dataset(CPU)
    dataset = dataclasses.replace(dataset, test=dataset.train)
    images = torch.randn(work.classes * work.ipc, *dataset.image_shape, generator=torch.Generator().manual_seed(0))
    condensed = fastdm.SyntheticSet(images, dataset.class_names, dataset.mean, dataset.std, dataset.name, {})
    tests = DataLoader(PublicImages(class_tests, dataset), 256)
    args, settings, seeds = public_arguments(epochs), work.settings().resolve(dataset, device), count()

    def ours() -> None:
        how: dict[str, Any] = {"num_eval": networks, "epochs": epochs, "seed": next(seeds)}
        fastdm.evaluate(condensed, dataset, device=device, precision=precision, **how)

    def public() -> None:
        for _ in range(networks):
            network = ConvNet(dataset, settings).to(device)
            public_evaluate(network, images.to(device), condensed.labels.to(device), tests, args)

    return ours, public


def check(work: Workload, device: torch.device, precision: str) -> Row:
    """How far the first change of the images is from the same step through PyTorch's own layers in float64, on a few
    real images."""
    few = dataclasses.replace(work, batch_real=min(4, work.batch_real))
    dataset = few.dataset(device)
    changes = []
    for backend, exact in (("reference", True), ("auto", False)):
        with chosen_backend(backend), precision_context(few.settings(precision=precision).precision, device) as dtype:
            step = build(few, dataset, device, torch.float64 if exact else dtype, precision)[0]
            step(0)
        changes.append(step.velocity.double())
    return compared(changes[1], changes[0], precision)


def compared(ours: Tensor, exact: Tensor, precision: str) -> Row:
    """Both errors of a change of the images, float64, with what they may be; whether they are within."""
    difference = (ours - exact).flatten(1)
    whole = float(difference.norm() / exact.norm())
    median = float((difference.norm(dim=1) / exact.flatten(1).norm(dim=1)).median())
    return judged(whole, _tolerance(ROUNDING[precision]), median, MEDIAN_TOLERANCE[precision])
