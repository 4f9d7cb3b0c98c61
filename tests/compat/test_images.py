"""`RealImages` against the public code's lists, and `dm_loss` against a loop over the classes."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import fastdm
from bench.baselines.public_step import random_dataset
from fastdm.augmentation import Strategy, augment
from fastdm.compat import RealImages
from fastdm.errors import FastDMError


def test_the_images_are_those_of_the_public_lists() -> None:
    """The public code shuffles the indices of a class with NumPy's global generator and takes the first n."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (30, 8, 8, 3), dtype=np.uint8)
    labels = generator.permutation(np.arange(30) % 3)
    real = RealImages((images, labels), mean=(0.5, 0.25, 0.5), std=(0.25, 0.5, 0.125))
    normalised = (torch.from_numpy(images).movedim(3, 1) / 255 - torch.tensor(real.mean)[:, None, None]) / torch.tensor(
        real.std
    )[:, None, None]
    indices = [[i for i, label in enumerate(labels) if label == c] for c in range(3)]
    for c, n in ((0, 4), (2, 10), (1, 1), (1, 99)):
        np.random.seed(c + n)  # noqa: NPY002
        expected = normalised[np.random.permutation(indices[c])[:n]]  # noqa: NPY002
        np.random.seed(c + n)  # noqa: NPY002
        # (x / 255 - mean) / std at most 8 in size, rounded five times on either way
        torch.testing.assert_close(real.get_images(c, n), expected, rtol=0, atol=10 * 8 * 2**-24)
    assert len(real) == 30
    assert real.num_classes == 3
    with pytest.raises(FastDMError, match="c is 3; the data set has 3 classes"):
        real.get_images(3, 1)
    with pytest.raises(FastDMError, match="must have 3 values"):
        RealImages((images, labels), mean=(0.5,), std=(0.5,))


@pytest.mark.parametrize("strategy", ["color_crop_cutout_flip_scale_rotate", "none", None])
@pytest.mark.parametrize("ragged", [False, True])
def test_the_loss_is_that_of_a_loop_over_the_classes(strategy: str | None, ragged: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    real = [torch.randn(5 + (c if ragged else 0), 3, 8, 8, generator=generator) for c in range(4)]
    synthetic = torch.randn(8, 3, 8, 8, generator=generator, requires_grad=True)
    weight = torch.randn(3 * 64, 16, generator=generator)

    def embed(images: Tensor) -> Tensor:
        return torch.tanh(images.flatten(1) @ weight / 8)

    tables = Strategy.parse(strategy).draw(torch.tensor([7, 0]), torch.arange(4), (8, 8))
    expected = torch.zeros(())
    for c in range(4):
        rows = [table[c : c + 1] for table in tables]

        def seen(images: Tensor, rows: list[Tensor] = rows) -> Tensor:
            one = torch.zeros(len(images), dtype=torch.int64)
            return embed(augment(images, rows, one)).mean(0)

        expected = expected + (seen(real[c]).detach() - seen(synthetic[2 * c : 2 * c + 2])).square().sum()
    (gradient,) = torch.autograd.grad(expected, synthetic)
    before = torch.get_rng_state()
    loss = fastdm.dm_loss(embed, synthetic, real if ragged else torch.stack(real), strategy, 7)
    loss.backward()
    assert torch.equal(torch.get_rng_state(), before)
    torch.testing.assert_close(loss, expected, rtol=64 * 2**-24, atol=0)  # a sum of 64 squares
    torch.testing.assert_close(synthetic.grad, gradient, rtol=0, atol=64 * 2**-24 * float(gradient.abs().max()))


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
    ],
)
def test_what_does_not_fit_together_is_refused(changes: dict[str, Any], message: str) -> None:
    good = {"image_syn": torch.zeros(4, 3, 8, 8), "real": torch.zeros(2, 6, 3, 8, 8), "strategy": "flip", "seed": 0}
    with pytest.raises(FastDMError, match=message):
        fastdm.dm_loss(**{"embed": lambda images: images.flatten(1), **good, **changes})
