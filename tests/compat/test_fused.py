"""The drop-in calls compute the public ConvNet by the package's blocks."""

from argparse import Namespace
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, TensorDataset

from fastdm.compat import dm_loss, evaluate_synset
from fastdm.kernels import extension

pytestmark = pytest.mark.skipif(extension.load() is None, reason="fastdm was installed without extension")


class ConvNet(nn.Module):
    """Two blocks of the public one, and its `view`, which only contiguous features have."""

    def __init__(self) -> None:
        super().__init__()
        blocks = [(nn.Conv2d(c, 32, 3, padding=1), nn.GroupNorm(32, 32), nn.ReLU(), nn.AvgPool2d(2)) for c in (3, 32)]
        self.features = nn.Sequential(*(layer for block in blocks for layer in block))
        self.classifier = nn.Linear(128, 2)

    def embed(self, x: Tensor) -> Tensor:
        out = self.features(x)
        return out.view(out.size(0), -1)  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.embed(x))  # type: ignore[no-any-return]


class Called(TorchDispatchMode):
    """The names of the ops that are called."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.names.add(func.name())
        return func(*args, **(kwargs or {}))


def evaluate(net: nn.Module) -> None:
    images, labels = torch.randn(2, 3, 8, 8), torch.tensor([0, 1])
    args = Namespace(device="cpu", lr_net=0.01, epoch_eval_train=0, batch_train=2, dsa=False, dc_aug_param=None)
    evaluate_synset(0, net, images, labels, DataLoader(TensorDataset(images, labels)), args)


def match(net: Any) -> None:
    synthetic = torch.randn(2, 3, 8, 8, requires_grad=True)
    dm_loss(net.embed, synthetic, torch.randn(2, 4, 3, 8, 8), None, seed=0).backward()


@pytest.mark.parametrize("call", [evaluate, match])
def test_the_convolutions_are_those_of_the_blocks(call: Callable[[nn.Module], None]) -> None:
    with Called() as called:
        call(ConvNet())
    assert {"fastdm::conv_norm_relu_pool", "fastdm::conv_norm_relu_pool_backward"} <= called.names
    assert not any("convolution" in name for name in called.names)
