"""Images matched in a network of the user's own."""

import pytest
import torch
from torch import Tensor, nn

import fastdm
from fastdm.errors import FastDMError

QUICK = {"ipc": 1, "iterations": 3, "batch_real": 8, "device": "cpu", "precision": "fp32"}


class Plain(nn.Module):
    """What "ConvNet-d1-w8-relu-none-avg" is, for 1-channel images."""

    def __init__(self, *between: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 8, 3, padding=3), *between, nn.ReLU(), nn.AvgPool2d(2))

    def embed(self, images: Tensor) -> Tensor:
        return torch.as_tensor(self.body(images))


def test_the_same_layers_give_the_same_images() -> None:
    own = fastdm.condense("digits", network=Plain, **QUICK)  # type: ignore[arg-type]
    named = fastdm.condense("digits", network="ConvNet-d1-w8-relu-none-avg", **QUICK)  # type: ignore[arg-type]
    start = fastdm.random_selection("digits", ipc=1)
    moved = (named.images - start.images).abs().max()
    assert moved > 1e-3
    # The layers are the same ones in another order of operations at most; a step of rounding is far below what moved.
    assert (own.images - named.images).abs().max() <= 1e-4 * moved
    assert own.settings["network"] == "Plain"


def test_batch_norm_looks_at_all_classes() -> None:
    def normed() -> nn.Module:
        return Plain(nn.BatchNorm2d(8))

    found = fastdm.condense("digits", network=normed, **QUICK)  # type: ignore[arg-type]
    assert found.images.isfinite().all()
    assert not torch.equal(found.images, fastdm.random_selection("digits", ipc=1).images)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: nn.Linear(64, 10), "<lambda> has no method embed"),
        (lambda: Plain(nn.Dropout(0.5)), "has a Dropout, whose draws do not follow from the seed"),
        (lambda: Plain(nn.PReLU()), "has parameters in a PReLU; they can be drawn in Conv2d, Linear,"),
        (lambda: Plain(nn.Conv2d(3, 8, 1)), "<lambda> cannot take 1x8x8 images: Given groups=1"),
    ],
)
def test_what_images_cannot_be_matched_in(build: object, message: str) -> None:
    with pytest.raises(FastDMError, match=message):
        fastdm.condense("digits", network=build, **QUICK)  # type: ignore[arg-type]


def test_settings_hold_a_name() -> None:
    with pytest.raises(FastDMError, match="network is a type; in settings it must be a name"):
        fastdm.Settings(network=Plain)  # type: ignore[arg-type]
