"""The whole iteration on a GPU: against the public loop, recorded as a graph, and in reduced precision."""

import dataclasses
from contextlib import closing

import pytest
import torch
from torch import Tensor

from bench.baselines.public_step import public_run, random_dataset
from fastdm.condensation.build import build_step
from fastdm.condensation.settings import Settings
from fastdm.data.pool import Dataset
from fastdm.system.device import Precision, precision_context
from tests.oracles import BF16_BOUND, clear_classes

CUDA = torch.device("cuda")
SETTINGS = Settings(ipc=1, batch_real=16, network="ConvNetW32", seed=3, deterministic=True)


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return random_dataset([24, 20, 31, 16, 17, 18, 19, 22], (3, 8, 8))


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
