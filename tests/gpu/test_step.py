"""The whole iteration on a GPU: against the CPU's, recorded as a graph, and in reduced precision."""

from contextlib import closing

import pytest
import torch
from torch import Tensor

from fastdm.build import arithmetic, build_step
from fastdm.data.pool import Dataset
from fastdm.settings import Precision, Settings
from tests.oracles import BF16_BOUND, random_dataset

CUDA = torch.device("cuda")
STEPS = 4


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return random_dataset([40, 30, 35])


def run(
    dataset: Dataset, device: torch.device, precision: Precision, steps: int = STEPS, *, capture: bool = False
) -> Tensor:
    settings = Settings(ipc=2, batch_real=32, network="ConvNetW32", precision=precision, deterministic=True)
    settings = settings.resolve(dataset, device)
    with arithmetic(settings, device) as dtype:
        step, _ = build_step(dataset, settings, device, dtype)
        with closing(step):
            if capture:
                step.capture()
            for iteration in range(steps):
                assert step(iteration).isfinite()
    return step.images.cpu()


def test_float32_equals_the_cpu(dataset: Dataset) -> None:
    """Within what the float32 literal loop itself differs from float64 by, some times over (tests/test_step.py)."""
    on_cpu = run(dataset, torch.device("cpu"), "fp32")
    assert (run(dataset, CUDA, "fp32") - on_cpu).abs().max() < 1e-2


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_a_recorded_run_equals_an_eager_one(precision: Precision, dataset: Dataset) -> None:
    """The same kernels with the same draws in the same order: equal bit for bit."""
    eager = run(dataset, CUDA, precision)
    assert torch.equal(run(dataset, CUDA, precision), eager)
    assert torch.equal(run(dataset, CUDA, precision, capture=True), eager)


def test_bfloat16_stays_near_float32(dataset: Dataset) -> None:
    start, wide, narrow = (run(dataset, CUDA, *how) for how in (("fp32", 0), ("fp32", 1), ("bf16", 1)))
    assert 0 < (narrow - wide).norm() < BF16_BOUND * (wide - start).norm()
