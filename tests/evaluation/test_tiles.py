"""Networks are trained and tested in bfloat16 through tiles where a CPU has them; here through their plain form."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from fastdm import evaluate
from fastdm.data import Dataset, open_dataset
from fastdm.data.subset import of_classes
from fastdm.evaluation.protocol import Protocol
from fastdm.evaluation.training import LabelledImages, draw_weights, train_network
from fastdm.kernels import extension
from fastdm.kernels.blocks import native
from fastdm.networks.architectures import build_network
from fastdm.synthetic.initial import random_selection

pytestmark = pytest.mark.skipif(extension.load() is None, reason="fastdm was installed without extension")

CPU = torch.device("cpu")
HALF = torch.finfo(torch.bfloat16).eps


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return of_classes(open_dataset("digits"), [0, 1, 4])


@pytest.fixture(autouse=True)
def plain_tiles() -> Iterator[None]:
    core = extension.load()
    before = core.tiles()
    core.use_tiles("plain")
    yield
    core.use_tiles(before)


def test_evaluation_in_bfloat16_trains_and_tests_in_tiles(digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    forward, backward = native.conv_norm_relu_pool, native.conv_norm_relu_pool_backward
    calls: set[tuple[str, torch.dtype, bool]] = set()

    def noted_forward(x: Tensor, *others: Any) -> Any:
        calls.add(("forward", x.dtype, others[-1]))  # what is kept for a gradient
        return forward(x, *others)

    def noted_backward(grad: Tensor, x: Tensor | None, *others: Any) -> Any:
        calls.add(("backward", grad.dtype, x is not None))  # to the weights
        return backward(grad, x, *others)

    monkeypatch.setattr(native, "conv_norm_relu_pool", noted_forward)
    monkeypatch.setattr(native, "conv_norm_relu_pool_backward", noted_backward)
    images = random_selection(digits, 2)
    evaluate(images, digits, networks=["ConvNetW32"], num_eval=1, epochs=1, precision="bf16", device="cpu")
    half = torch.bfloat16
    assert calls == {("forward", half, True), ("forward", half, False), ("backward", half, True)}


def test_a_training_in_bfloat16_is_near_that_in_float32(digits: Dataset) -> None:
    protocol = Protocol(["ConvNetW32"], "color_crop_cutout_scale_rotate", 1, 4, lr_net=0.05, batch_train=12)
    examples = LabelledImages.of(random_selection(digits, 4), digits.mean, digits.std, CPU)
    found = {}
    for dtype in (None, torch.float32, torch.bfloat16):
        network = build_network("ConvNetW32", channels=1, num_classes=3, image_size=8, drawn=False)
        draw_weights(network, examples, protocol, 0)
        if dtype is not None:
            train_network(network, examples, protocol, 0, dtype)
        found[dtype] = torch.cat([parameter.detach().flatten() for parameter in network.parameters()])
    moved, apart = found[torch.float32] - found[None], found[torch.bfloat16] - found[torch.float32]
    # The error of each of the five updates: see the training step in tests/kernels/blocks/test_tiles.py.
    assert 0 < float(apart.norm() / moved.norm()) <= (4 * HALF) ** 0.5
