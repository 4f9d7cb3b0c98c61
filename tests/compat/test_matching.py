"""`dm_loss` against a loop over the classes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastdm
from fastdm.augmentation import Strategy, augment
from fastdm.errors import FastDMError
from tests.oracles import random_dataset


class Embedding(nn.Module):
    """tanh of a linear layer, which notes how many images come at a time."""

    def __init__(self, trained: bool = False, norm: bool = False) -> None:
        super().__init__()
        weight = torch.randn(3 * 64, 16, generator=torch.Generator().manual_seed(1))
        self.weight = nn.Parameter(weight / 8, requires_grad=trained)
        self.norm = nn.BatchNorm1d(16, affine=False) if norm else nn.Identity()
        self.seen: list[int] = []

    def embed(self, images: Tensor) -> Tensor:
        self.seen.append(len(images))
        embedded: Tensor = self.norm(torch.tanh(images.flatten(1) @ self.weight))
        return embedded

    forward = embed


def loop(
    embed: Callable[[Tensor], Tensor], synthetic: Tensor, real: list[Tensor], strategy: str | None, seed: int
) -> Tensor:
    """The loss as the public code sums it."""
    classes, ipc = len(real), len(synthetic) // len(real)
    tables = Strategy.parse(strategy).draw(torch.tensor([seed, 0]), torch.arange(classes), (8, 8))
    total = torch.zeros(())
    for c in range(classes):
        rows = [table[c : c + 1] for table in tables]

        def mean(images: Tensor, rows: list[Tensor] = rows) -> Tensor:
            return embed(augment(images, rows, torch.zeros(len(images), dtype=torch.int64))).mean(0)

        total = total + (mean(real[c]).detach() - mean(synthetic[ipc * c : ipc * (c + 1)])).square().sum()
    return total


def images(ragged: bool = False, ipc: int = 2) -> tuple[list[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(0)
    real = [torch.randn(5 + (c if ragged else 0), 3, 8, 8, generator=generator) for c in range(4)]
    return real, torch.randn(4 * ipc, 3, 8, 8, generator=generator, requires_grad=True)


ALL = "color_crop_cutout_flip_scale_rotate"


@pytest.mark.parametrize("strategy", [ALL, "none", None])
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize(
    ("kind", "ipc"), [("function", 2), ("method", 2), ("method", 1), ("module", 5), ("trained", 2), ("trained", 5)]
)
def test_the_loss_is_that_of_a_loop_over_the_classes(
    kind: str, ipc: int, ragged: bool, strategy: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastdm.compat.parts.CACHE_BYTES", 3 * 512 * 64)
    real, synthetic = images(ragged, ipc)
    net = Embedding(trained=kind == "trained")
    embed = {"function": lambda x: net.embed(x), "module": net}.get(kind, net.embed)
    wanted = [synthetic, net.weight] if kind == "trained" else [synthetic]
    expected = loop(net.embed, synthetic, real, strategy, 7)
    gradients = torch.autograd.grad(3 * expected, wanted)
    net.seen.clear()
    before = torch.get_rng_state()
    loss = fastdm.dm_loss(embed, synthetic, real if ragged else torch.stack(real), strategy, 7)
    assert max(net.seen) == (max(sum(map(len, real)), 4 * ipc) if kind == "function" else 3)
    found = torch.autograd.grad(3 * loss, wanted)
    assert torch.equal(torch.get_rng_state(), before)
    torch.testing.assert_close(loss, expected, rtol=64 * 2**-24, atol=0)  # a sum of 64 squares
    for ours, theirs in zip(found, gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=64 * 2**-24 * float(theirs.abs().max()))


@pytest.mark.parametrize("strategy", [ALL, None])
def test_the_gradient_passes_on_to_what_the_images_are_made_of(strategy: str | None) -> None:
    real, synthetic = images()
    net = Embedding()
    code = synthetic.detach()[:, :, ::2, ::2].clone().requires_grad_()
    made = code.repeat_interleave(2, 2).repeat_interleave(2, 3)
    (found,) = torch.autograd.grad(fastdm.dm_loss(net.embed, made, real, strategy, 3), code, retain_graph=True)
    (expected,) = torch.autograd.grad(loop(net.embed, made, real, strategy, 3), code)
    torch.testing.assert_close(found, expected, rtol=0, atol=64 * 2**-24 * float(expected.abs().max()))


def test_without_a_gradient_the_loss_is_the_same() -> None:
    real, synthetic = images()
    net = Embedding()
    loss = fastdm.dm_loss(net.embed, synthetic, real, ALL, 7)
    assert loss.requires_grad
    assert not (plain := fastdm.dm_loss(net.embed, synthetic.detach(), real, ALL, 7)).requires_grad
    with torch.no_grad():
        assert not (off := fastdm.dm_loss(net.embed, synthetic, real, ALL, 7)).requires_grad
    assert loss == plain == off
    loss.backward()
    assert synthetic.grad is not None


def test_a_second_derivative_is_refused() -> None:
    real, synthetic = images()
    loss = fastdm.dm_loss(Embedding().embed, synthetic, real, ALL, 7)
    with pytest.raises(NotImplementedError, match="dm_loss has no second derivative"):
        loss.backward(create_graph=True)


def test_batch_norm_takes_the_statistics_of_all_classes() -> None:
    real, synthetic = images()
    net = Embedding(norm=True)
    together = [net.embed(torch.cat(real)).view(4, -1, 16), net.embed(synthetic).view(4, -1, 16)]
    expected = (together[0].mean(1) - together[1].mean(1)).square().sum()
    net.seen.clear()
    torch.testing.assert_close(fastdm.dm_loss(net.embed, synthetic, real, None, 7), expected)
    assert net.seen == [20, 8]


def test_another_seed_augments_otherwise() -> None:
    dataset = random_dataset([6, 6], shape=(3, 8, 8))
    real = torch.stack([dataset.train.images[:6] / 255, dataset.train.images[6:] / 255])
    synthetic = torch.rand(2, 3, 8, 8)
    one, again, other = (
        fastdm.dm_loss(lambda images: images.flatten(1), synthetic, real, "flip_crop", seed) for seed in (1, 1, 2)
    )
    assert one == again != other


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_syn": torch.zeros(5, 3, 8, 8)}, r"image_syn is \[5, 3, 8, 8\]; it must be"),
        ({"image_syn": torch.zeros(4, 3, 9, 8)}, r"real\[0\] is \[6, 3, 8, 8\] on cpu; it must be \[n, 3, 9, 8\]"),
        ({"real": []}, "real has 0 classes"),
        ({"strategy": "blur"}, "unknown augmentation 'blur'"),
        ({"seed": -1}, "seed is -1"),
        ({"embed": torch.sum}, r"embed gives \[\] of 12 images"),
        ({"embed": lambda images: (images,)}, "embed gives a tuple of 12 images"),
        ({"real": torch.zeros(2, 6, 3, 8, 8, dtype=torch.uint8)}, r"real\[0\] is torch.uint8; it must be normalised"),
        ({"real": [torch.zeros(6, 3, 8, 8), torch.zeros(6, 3, 8, 8).numpy()]}, r"real\[1\] is a ndarray"),
        ({"image_syn": torch.zeros(4, 3, 8, 8).numpy()}, "image_syn is a ndarray; it must be normalised images"),
        ({"real": [torch.zeros(6, 3, 8, 8), torch.zeros(6, 3, 8, 8).byte()]}, r"real\[1\] is torch.uint8"),
        ({"image_syn": [torch.zeros(3, 8, 8)]}, "image_syn is a list; it must be normalised images, a tensor"),
        ({"embed": 3}, "embed is a int; it must be a function"),
        ({"embed": lambda images: images.flatten(1).argmax(1, keepdim=True)}, "embed gives torch.int64"),
        ({"image_syn": torch.zeros(4, 3, 8, 8, dtype=torch.uint8)}, "image_syn is torch.uint8"),
        ({"real": {0: torch.zeros(6, 3, 8, 8)}}, "real is a dict; it must be a tensor, or a list"),
        ({"image_syn": torch.zeros(4, 2, 8, 8)}, "the images have 2 channels; with 'flip' they must have 1 or 3"),
    ],
)
def test_what_does_not_fit_together_is_refused(changes: dict[str, Any], message: str) -> None:
    good = {"image_syn": torch.zeros(4, 3, 8, 8), "real": torch.zeros(2, 6, 3, 8, 8), "strategy": "flip", "seed": 0}
    with pytest.raises(FastDMError, match=message):
        fastdm.dm_loss(**{"embed": lambda images: images.flatten(1), **good, **changes})
