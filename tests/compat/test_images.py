"""`RealImages` against the public code's lists."""

import numpy as np
import pytest
import torch

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


def test_mean_and_std_may_be_of_any_kind_and_must_make_sense() -> None:
    images, labels = np.zeros((4, 8, 8, 3), np.uint8), np.arange(4) % 2
    for values in ([0.5, 0.5, 0.5], np.full(3, 0.5), torch.full((3,), 0.5)):
        real = RealImages((images, labels), mean=values, std=values)
        assert torch.equal(real.get_images(0, 1), -torch.ones(1, 3, 8, 8))
    for std in ((0.5, 0.0, 0.5), (0.5, float("nan"), 0.5)):
        with pytest.raises(FastDMError, match="they must be finite, and std above 0"):
            RealImages((images, labels), std=std)
    with pytest.raises(FastDMError, match="tpu"):
        RealImages((images, labels), "tpu")
