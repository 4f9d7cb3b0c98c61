"""`DiffAug` against the public code's functions, written out, from the same draws of the same generators."""

import numpy as np
import pytest
import torch
from torch import Tensor

from bench.baselines import public_augment
from fastdm.compat import DiffAug
from fastdm.errors import FastDMError

STRATEGY = "color_crop_cutout_flip_scale_rotate"


class Literal:
    """What the public class draws and does."""

    def __init__(self, x: Tensor, batch: bool, seed: int) -> None:
        self.x, self.batch, self.seed = x, batch, seed

    def begin(self) -> None:
        if self.seed > 0:
            np.random.seed(self.seed)  # noqa: NPY002
            torch.manual_seed(self.seed)

    def by_torch(self) -> Tensor:
        n = len(self.x)
        if self.batch:
            return torch.full((n,), np.random.uniform(), dtype=torch.float64)  # noqa: NPY002
        return torch.rand(n, 1, 1, 1, dtype=self.x.dtype).flatten()

    def by_numpy(self) -> Tensor:
        n = len(self.x)
        size = None if self.batch else n
        return torch.as_tensor(np.random.uniform(size=size)).expand(n)  # noqa: NPY002

    def integer(self, low: int, high: int) -> Tensor:
        n = len(self.x)
        if self.batch:
            return torch.full((n,), int(np.random.randint(low, high)))  # noqa: NPY002
        return torch.randint(low, high, size=[n, 1, 1]).flatten()

    def apply(self, family: str) -> None:
        x, dtype = self.x, self.x.dtype
        height, width = x.shape[2:]
        if family == "color":
            self.begin()
            x = public_augment.brightness(x, (self.by_torch().to(dtype) - 0.5) * 1.0)
            self.begin()
            x = public_augment.saturation(x, self.by_torch().to(dtype) * 2.0)
            self.begin()
            self.x = public_augment.contrast(x, self.by_torch().to(dtype) + 0.5)
            return
        self.begin()
        if family == "flip":
            u = self.by_numpy() if self.batch else torch.rand(len(x), 1, 1, 1).flatten()
            self.x = torch.where((u < 0.5)[:, None, None, None], x.flip(3), x)
        elif family == "crop":
            reach = [int(size * 0.125 + 0.5) for size in (height, width)]
            self.x = public_augment.crop(x, *(self.integer(-each, each + 1) for each in reach))
        elif family == "scale":
            sx, sy = (self.by_numpy() * (1.2 - 1 / 1.2) + 1 / 1.2 for _ in range(2))
            self.x = public_augment.scale(x, sx.to(dtype), sy.to(dtype))
        elif family == "rotate":
            angle = (self.by_numpy() - 0.5) * 2 * 15 / 180 * np.pi
            self.x = public_augment.rotate(x, angle.cos().to(dtype), angle.sin().to(dtype))
        else:
            holes = [int(size * 0.5 + 0.5) for size in (height, width)]
            offsets = [self.integer(0, size + 1 - hole % 2) for size, hole in zip((height, width), holes, strict=True)]
            mask = torch.ones(len(x), 1, height, width, dtype=dtype)
            for image in range(len(x)):
                rows, columns = (
                    (torch.arange(hole) + int(offset[image]) - hole // 2).clamp(0, size - 1)
                    for hole, offset, size in zip(holes, offsets, (height, width), strict=True)
                )
                mask[image, 0, rows[:, None], columns] = 0
            self.x = x * mask


@pytest.mark.parametrize("batch", [False, True], ids=["images", "batch"])
@pytest.mark.parametrize("single_aug", [True, False], ids=["one", "all"])
@pytest.mark.parametrize("seed", [-1, 5])
def test_equal_generators_give_the_public_transformation(batch: bool, single_aug: bool, seed: int) -> None:
    x = torch.rand(5, 3, 12, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for start in range(6):
        np.random.seed(start)  # noqa: NPY002
        torch.manual_seed(start)
        found = DiffAug(STRATEGY, batch=batch)(x, single_aug=single_aug, seed=seed)
        left = (np.random.uniform(), torch.rand(1).item())  # noqa: NPY002
        np.random.seed(start)  # noqa: NPY002
        torch.manual_seed(start)
        literal = Literal(x, batch, seed)
        for family in ("flip", "color"):
            literal.apply(family)
        others = ["crop", "scale", "rotate"]
        for family in [others[np.random.randint(3)]] if single_aug else others:  # noqa: NPY002
            literal.apply(family)
        literal.apply("cutout")
        # The table holds float32 numbers: a shift of a sample by 1e-7 of 12 pixels, times differences of at most 4.
        torch.testing.assert_close(found, literal.x, rtol=0, atol=2e-5)
        assert left == (np.random.uniform(), torch.rand(1).item())  # noqa: NPY002


def test_single_draws_one_of_all_families() -> None:
    augmentation = DiffAug("color_flip_crop", single=True)
    assert augmentation.strategy == ["color", "flip", "crop"]
    assert [augmentation.flip, augmentation.color, augmentation.cutout] == [False] * 3


def test_no_augmentation_and_unknown_families() -> None:
    x = torch.rand(2, 1, 8, 8)
    assert DiffAug("none")(x) is x
    with pytest.raises(FastDMError, match="unknown augmentation 'translate'"):
        DiffAug("translate")
    with pytest.raises(FastDMError, match="the strategy is a list; it must be a str"):
        DiffAug(["color"])  # type: ignore[arg-type]
    with pytest.raises(FastDMError, match="the images are a ndarray; they must be a tensor"):
        DiffAug("color")(x.numpy())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "images",
    [torch.zeros(2, 4, 8, 8), torch.zeros(3, 8, 8), torch.zeros(2, 3, 8, 8, dtype=torch.uint8)],
    ids=lambda images: str(list(images.shape)),
)
def test_images_that_it_does_not_take_are_refused(images: torch.Tensor) -> None:
    with pytest.raises(FastDMError, match=r"they must be floats \[N, 1 or 3, H, W\]"):
        DiffAug("color_crop")(images)
