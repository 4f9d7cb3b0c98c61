"""The whole iteration on a GPU: against the CPU's, recorded as a graph, and in reduced precision."""

from contextlib import closing

import pytest
import torch
from torch import Tensor

from fastdm.build import arithmetic, build_step
from fastdm.data.pool import Dataset
from fastdm.settings import Precision, Settings
from tests.oracles import random_dataset

CUDA = torch.device("cuda")
STEPS = 4


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return random_dataset([40, 30, 35])


def run(dataset: Dataset, device: torch.device, precision: Precision, *, capture: bool = False) -> Tensor:
    settings = Settings(ipc=2, batch_real=32, network="ConvNetW32", precision=precision, deterministic=True)
    settings = settings.resolve(dataset, device)
    with arithmetic(settings, device) as dtype:
        step, _ = build_step(dataset, settings, device, dtype)
        with closing(step):
            if capture:
                step.capture()
            for iteration in range(STEPS):
                loss = step(iteration)
            assert loss.isfinite()
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
    """The pixels move by sums of bfloat16 gradients: a few per cent of the way that they have gone."""
    settings = {"fp32": run(dataset, CUDA, "fp32"), "bf16": run(dataset, CUDA, "bf16")}
    start = run_start(dataset)
    way = (settings["fp32"] - start).norm()
    assert (settings["bf16"] - settings["fp32"]).norm() < 0.1 * way


def run_start(dataset: Dataset) -> Tensor:
    settings = Settings(ipc=2, batch_real=32, network="ConvNetW32", precision="fp32").resolve(dataset, CUDA)
    with arithmetic(settings, CUDA) as dtype:
        return build_step(dataset, settings, CUDA, dtype)[0].images.cpu()
