"""Gradient matching: its distance and gradient against their definitions, its loops, and the times of whole runs."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from bench import matching
from bench.baselines.public_gradient_matching import PUBLISHED, GradientMatching, distance, matching_loss
from bench.baselines.public_step import ConvNet
from bench.harness import records
from bench.harness.workloads import CPU
from fastdm import Settings
from tests.oracles import random_dataset

SETTINGS = Settings(ipc=2, batch_real=4, network="ConvNetW8", init="noise")


def test_the_distance_is_one_minus_the_cosine_of_every_output_channel() -> None:
    ours = [torch.tensor([[3.0, 0.0], [0.0, 2.0]]), torch.ones(2)]
    theirs = [torch.tensor([[5.0, 0.0], [0.0, -1.0]]), -torch.ones(2)]
    # Parallel: 0, opposite: 2, a bias: nothing. 1e-6 in the denominators of 15 and 2 takes 1e-6 / 15 and 1e-6 / 2.
    assert distance(ours, theirs).item() == pytest.approx(2.0, abs=1e-6)
    convolution = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    turned = convolution.roll(1, 3)
    cosines = torch.nn.functional.cosine_similarity(convolution.flatten(1), turned.flatten(1))
    assert distance([convolution], [turned]).item() == pytest.approx((1 - cosines).sum().item(), abs=1e-5)


def test_the_gradient_to_the_pixels_is_that_of_finite_differences() -> None:
    dataset = random_dataset([4, 4], (1, 8, 8))
    torch.manual_seed(0)
    network = ConvNet(dataset, Settings(ipc=1, network="ConvNetW4", init="noise")).double()
    real, learnt = torch.randn(2, 3, 1, 8, 8, dtype=torch.float64)

    def loss(images: Tensor) -> Tensor:
        return matching_loss(network, real, images, 1)

    assert torch.autograd.gradcheck(loss, learnt[:1].requires_grad_(), fast_mode=True)


def test_an_outer_step_moves_the_images_and_an_epoch_the_network() -> None:
    dataset = random_dataset([6, 6])
    torch.manual_seed(0)
    step = GradientMatching(dataset, SETTINGS, CPU)
    images, weight = step.images.detach().clone(), step.network.classifier.weight.detach().clone()
    # Between 0 and 2 for each output channel of three convolutions of 8 and of the classifier of 2.
    assert 0 < step(0) < 2 * (3 * 8 + 2)
    assert not torch.equal(step.images.detach(), images)
    assert torch.equal(step.network.classifier.weight, weight)
    images.copy_(step.images.detach())
    step.train()
    assert torch.equal(step.images.detach(), images)
    assert not torch.equal(step.network.classifier.weight, weight)


def test_a_run_is_what_its_budget_makes_of_its_steps() -> None:
    assert [(ipc, loops.outer, loops.inner) for ipc, loops in PUBLISHED.items()] == [
        (1, 1, 1),
        (10, 10, 50),
        (50, 50, 10),
    ]
    seconds = {
        name: records.spread([value])
        for name, value in {"gradient": 3.6, "epoch": 0.36, "public": 1.8, "fastdm": 0.18}.items()
    }
    one, ten = matching.runs(seconds, 1), matching.runs(seconds, 10)
    assert one["hours"] == pytest.approx({"gradient": 1.0, "public": 10.0, "fastdm": 1.0})
    assert ten["hours"]["gradient"] == pytest.approx(10 + 9 * 50 * 0.1)
    assert ten["run_ratio"] == pytest.approx({"public": 5.5, "fastdm": 55})
    assert ten["step_ratio"] == pytest.approx({"public": 2, "fastdm": 20})


def test_a_size_is_measured(folder: Path) -> None:
    work = matching.SIZES[10].smoke()
    recorder = records.Recorder(matching.SUITE, {"smoke": True})
    row = recorder.add({"name": work.name}, lambda: matching.measure(work, CPU, 10))
    assert set(row["seconds"]) == {"gradient", "epoch", "public", "fastdm"}
    assert row["hours"]["gradient"] > 0
