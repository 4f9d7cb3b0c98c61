"""The whole iteration on a GPU: against a CPU and the public loop, as a graph, in reduced precision, in parts."""

import dataclasses
from contextlib import closing

import pytest
import torch
from torch import Tensor, nn

from fastdm.condensation.build import build_step
from fastdm.condensation.settings import Settings
from fastdm.data.batches import RealBatch
from fastdm.data.pool import Dataset
from fastdm.networks.model import Network
from fastdm.objectives.class_means import ClassMeans
from fastdm.objectives.objective import Segments
from fastdm.system.device import Precision, precision_context
from tests.oracles import BF16_BOUND, CPU, clear_classes, public_run, random_dataset

CUDA = torch.device("cuda")
SETTINGS = Settings(ipc=1, batch_real=16, network="ConvNetW32", seed=3, deterministic=True)


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return random_dataset([24, 20, 31, 16, 17, 18, 19, 22], (3, 8, 8))


def first_step(dataset: Dataset, device: torch.device) -> tuple[float, Tensor]:
    """The loss of one iteration, and what it changes."""
    settings = dataclasses.replace(SETTINGS, precision="fp32").resolve(dataset, device)
    with precision_context("fp32", device, deterministic=True) as dtype:
        step, _ = build_step(dataset, settings, device, dtype)
        with closing(step):
            before = step.images.clone()
            return step(0).item(), (step.images - before).cpu()


def test_a_step_is_that_of_a_cpu(dataset: Dataset) -> None:
    """Of the same draws. Where an activation lies on the other side of a ReLU a class's gradient is another one, so
    that only the median difference is held small: ten times what Winograd's convolutions make of it on a CPU."""
    (expected_loss, expected), (loss, change) = (first_step(dataset, device) for device in (CPU, CUDA))
    assert loss == pytest.approx(expected_loss, rel=1e-4)
    assert (change - expected).abs().median() <= 3e-5 * expected.abs().max()


@pytest.mark.parametrize("precision", ["fp32", "tf32"])
def test_class_means_of_a_batch_in_parts_are_float32(precision: Precision) -> None:
    """Of identity embeddings, whose means a CPU computes in float64."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(300, 64, 1, 1, generator=generator)
    offsets = torch.tensor([0, 100, 101, 300])
    group = torch.repeat_interleave(torch.arange(3), offsets.diff())
    segments = Segments(slice(0, 300), offsets.to(CUDA), group.to(CUDA), (100, 1, 199), 199)
    network = Network(nn.Sequential(nn.Identity()), 64, 3, frozen=True)
    with precision_context(precision, CUDA):
        batch = RealBatch(features.to(CUDA))
        means = ClassMeans().real(network, batch, segments, lambda part, group: part.images, 77).cpu()
    rows = zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)
    expected = torch.stack([features[first:end].double().mean(0).flatten() for first, end in rows])
    # A sum of up to 199 numbers of at most 4, each addition rounded, and a division.
    torch.testing.assert_close(means.double(), expected, rtol=0, atol=200 * 4 * torch.finfo(torch.float32).eps)


def run(dataset: Dataset, precision: Precision, steps: int = 20, *, capture: bool = False) -> Tensor:
    settings = dataclasses.replace(SETTINGS, precision=precision).resolve(dataset, CUDA)
    with precision_context(settings.precision, CUDA, deterministic=settings.deterministic) as dtype:
        step, _ = build_step(dataset, settings, CUDA, dtype)
        with closing(step):
            if capture:
                step.capture()
            for iteration in range(steps):
                assert step(iteration).isfinite()
    return step.images.cpu()


def test_float32_equals_the_public_loop(dataset: Dataset) -> None:
    """As on a CPU (tests/test_step.py): cuDNN may take Winograd's convolution, too."""
    exact, _, clear = clear_classes(dataset, SETTINGS, 20, 5 * 3e-6)
    literal, _ = public_run(dataset, SETTINGS, 20, torch.float32)
    assert clear.sum() >= 3
    yardstick = (literal - exact)[clear].abs().max()
    assert (run(dataset, "fp32") - exact)[clear].abs().max() <= 8 * yardstick


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_a_recorded_run_equals_an_eager_one(precision: Precision, dataset: Dataset) -> None:
    """The same kernels with the same draws in the same order: equal bit for bit."""
    eager = run(dataset, precision)
    assert torch.equal(run(dataset, precision), eager)
    assert torch.equal(run(dataset, precision, capture=True), eager)


def test_bfloat16_stays_near_float32(dataset: Dataset) -> None:
    start, wide, narrow = (run(dataset, *how) for how in (("fp32", 0), ("fp32", 1), ("bf16", 1)))
    assert 0 < (narrow - wide).norm() < BF16_BOUND * (wide - start).norm()
