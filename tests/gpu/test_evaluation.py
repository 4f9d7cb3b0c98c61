"""Networks that are trained on a GPU, by graphs: those that are trained one by one, and those of a CPU."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import fastdm
from fastdm.data.pool import Dataset
from fastdm.evaluation.protocol import Protocol
from fastdm.evaluation.together import Together, networks_together
from fastdm.evaluation.training import LabelledImages, train_network
from fastdm.networks.architectures import build_network
from fastdm.networks.model import Network
from fastdm.synthetic.initial import random_selection
from fastdm.system.device import precision_context
from tests.oracles import CPU, random_dataset

CUDA = torch.device("cuda")
PROTOCOL = Protocol(["ConvNetD1"], "color_crop_cutout_scale_rotate", 2, 4, lr_net=0.05, batch_train=5, seed=3)
UPDATES = 18
"""At most, of twelve images."""


@pytest.fixture(autouse=True)
def _same_sums() -> Iterator[None]:
    with precision_context("fp32", CUDA, deterministic=True):
        yield


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    made = random_dataset([20, 21, 22], (1, 8, 8))
    return dataclasses.replace(made, test=made.train)


def built(device: torch.device) -> Network:
    return build_network("ConvNetD1", channels=1, num_classes=3, image_size=8, drawn=False, device=device)


def weights(network: Network) -> Tensor:
    return torch.cat([tensor.detach().flatten().float().cpu() for tensor in network.state_dict().values()])


@pytest.mark.parametrize("protocol", [PROTOCOL, dataclasses.replace(PROTOCOL, name="idc", epochs=6)], ids=["dm", "idc"])
def test_networks_of_a_graph_are_those_that_are_trained_alone(protocol: Protocol, dataset: Dataset) -> None:
    def examples(device: torch.device) -> LabelledImages:
        return LabelledImages.of(random_selection(dataset, 4), dataset.mean, dataset.std, device)

    together = [(number, built(CUDA)) for number in (0, 3)]
    assert networks_together(together[0][1], examples(CUDA), protocol) >= 2
    Together(together, examples(CUDA), protocol, torch.float32).run()
    for number, network in together:
        alone, on_cpu = built(CUDA), built(CPU)
        train_network(alone, examples(CUDA), protocol, number, torch.float32)
        train_network(on_cpu, examples(CPU), protocol, number, torch.float32)
        exact = weights(on_cpu)
        # The learning rate of a graph is a float32: each update is off by 2^-24 of itself, and grows little in so few.
        assert (weights(network) - weights(alone)).abs().max() <= 1e-5 * exact.abs().max()
        # Convolutions of either device are off by up to 3e-6, and an activation on the other side of a ReLU gives some
        # weights another gradient: the median of all weights is held.
        assert (weights(network) - exact).abs().median() <= UPDATES * 3e-6 * exact.abs().max()


def test_a_pool_is_that_of_a_cpu(dataset: Dataset) -> None:
    how: dict[str, Any] = {"networks": 2, "epochs": 2, "states": 2, "network": "ConvNetD1", "batch_train": 16}
    pools = [fastdm.train_pool(dataset, device=device, precision="fp32", **how) for device in (CUDA, CPU)]
    for row, exact in zip(*(pool.weights.flatten(0, 1).cpu() for pool in pools), strict=True):
        assert (row - exact).abs().median() <= UPDATES * 3e-6 * exact.abs().max()


def test_a_network_of_the_users_own_is_tested_like_on_a_cpu(dataset: Dataset) -> None:
    def own() -> torch.nn.Module:
        layers = torch.nn.Conv2d(1, 32, 3, padding=1), torch.nn.GroupNorm(32, 32), torch.nn.ReLU(inplace=True)
        return torch.nn.Sequential(*layers, torch.nn.AvgPool2d(2, 2), torch.nn.Flatten(), torch.nn.Linear(512, 3))

    train, how = random_selection(dataset, 4), {"networks": [own], "num_eval": 2, "epochs": 4, "lr_net": 0.05}
    (ours, exact) = (fastdm.evaluate(train, dataset, device=device, **how).accuracies["own"] for device in (CUDA, CPU))
    # The weights differ by rounding (see above): hardly an image is at a boundary.
    assert ours == pytest.approx(exact, abs=2 / len(dataset.train.labels))
