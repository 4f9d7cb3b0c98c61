"""Greedy selection by the mean feature."""

import pytest
import torch
from torch.nn import functional

from fastdm.data import open_dataset
from fastdm.errors import FastDMError
from fastdm.synthetic.herding import herded_selection, herding_order


def test_each_pick_brings_the_mean_closest() -> None:
    features = torch.randn(30, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    picked: list[int] = []
    for _ in range(12):
        distances = {
            row: (features.mean(0) - features[[*picked, row]].mean(0)).norm().item()
            for row in range(30)
            if row not in picked
        }
        picked.append(min(distances, key=distances.__getitem__))
    assert herding_order(features, 12).tolist() == picked
    assert sorted(herding_order(features, 30).tolist()) == list(range(30))


def test_real_images_of_every_class_are_selected() -> None:
    digits = open_dataset("digits")
    chosen = herded_selection(digits, 3, lambda images: images)
    pixels = chosen.pixels()
    for row, label in enumerate(chosen.labels.tolist()):
        first, end = digits.train.class_offsets[label : label + 2].tolist()
        assert (digits.train.images[first:end] == pixels[row]).flatten(1).all(1).any()
    assert len(pixels.flatten(1).unique(dim=0)) == 30


def test_features_count_by_their_direction() -> None:
    """Brighter images have longer features in the same direction, which must not make them others."""
    digits = open_dataset("digits")
    shape = digits.image_shape
    mean, std = digits.mean[0], digits.std[0]

    def directions(images: torch.Tensor) -> torch.Tensor:
        return functional.normalize((images * std + mean).view(-1, shape[1] * shape[2]))

    lengths = torch.linspace(1, 9, len(digits.train))

    def stretched(images: torch.Tensor) -> torch.Tensor:
        return directions(images) * lengths[: len(images), None]

    expected = herded_selection(digits, 3, directions).images
    assert torch.equal(herded_selection(digits, 3, stretched).images, expected)


def test_more_images_than_a_class_has() -> None:
    with pytest.raises(FastDMError, match="ipc is 200; it must be at least 1 and at most 1"):
        herded_selection(open_dataset("digits"), 200, lambda images: images)


def test_features_that_are_not_finite_pick_nothing() -> None:
    """As a network gives them whose training diverged: every row would be as near as any other."""
    digits = open_dataset("digits")
    size = digits.train.class_sizes[0]
    with pytest.raises(FastDMError, match="features of class '0' are not finite: no image is nearest to their mean"):
        herded_selection(digits, 1, lambda images: images * (torch.nan if len(images) == size else 1))
