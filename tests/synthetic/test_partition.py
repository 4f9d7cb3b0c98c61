"""Expanding canvases, its adjoint, and the canvases that real images make."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from fastdm.errors import FastDMError
from fastdm.synthetic.partition import expand, shrink

EPS = torch.finfo(torch.float64).eps


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("factor", "size"), [(2, (8, 8)), (2, (6, 10)), (3, (9, 6)), (4, (4, 8))])
def test_every_part_is_enlarged_bilinearly_by_itself(factor: int, size: tuple[int, int]) -> None:
    canvases = random(3, 2, *size)
    height, width = size[0] // factor, size[1] // factor
    parts = [
        canvas[:, i * height : (i + 1) * height, j * width : (j + 1) * width]
        for canvas in canvases
        for i in range(factor)
        for j in range(factor)
    ]
    expected = functional.interpolate(torch.stack(parts), size, mode="bilinear", align_corners=False)
    # Pixels are below 1: two sums of two products each.
    torch.testing.assert_close(expand(canvases, factor), expected, rtol=0, atol=8 * EPS)


@pytest.mark.parametrize(("factor", "size"), [(2, (8, 8)), (3, (9, 6))])
def test_the_gradient_is_the_adjoint(factor: int, size: tuple[int, int]) -> None:
    """⟨expand x, g⟩ = ⟨x, expandᵀ g⟩, where expandᵀ adds, for every output pixel, its two by two taps."""
    canvases = random(2, 1, *size).requires_grad_()
    grad = random(2 * factor**2, 1, *size, seed=1)
    decoded = expand(canvases, factor)
    (adjoint,) = torch.autograd.grad(decoded, canvases, grad)
    sums = ((decoded * grad).sum() - (canvases * adjoint).sum()).abs()
    assert sums <= 8 * grad.numel() * EPS

    expected = torch.zeros_like(canvases)
    small = [side // factor for side in size]
    for image in range(len(grad)):
        canvas, part = divmod(image, factor**2)
        corner = [index * side for index, side in zip(divmod(part, factor), small, strict=True)]
        for i in range(size[0]):
            for j in range(size[1]):
                taps = []
                for position, side in zip((i, j), small, strict=True):
                    source = max((position + 0.5) / factor - 0.5, 0)
                    low = int(source)
                    taps.append([(low, 1 - (source - low)), (min(low + 1, side - 1), source - low)])
                for row, row_weight in taps[0]:
                    for column, weight in taps[1]:
                        where = (canvas, 0, corner[0] + row, corner[1] + column)
                        expected.data[where] += row_weight * weight * grad[image, 0, i, j]
    torch.testing.assert_close(adjoint, expected.detach(), rtol=0, atol=64 * EPS)


def test_a_constant_stays_one_and_factor_1_changes_nothing() -> None:
    canvases = random(2, 3, 8, 8)
    assert expand(canvases, 1) is canvases
    flat = torch.full((2, 3, 8, 8), 0.7, dtype=torch.float64)
    torch.testing.assert_close(expand(flat, 2), flat.repeat(4, 1, 1, 1), rtol=0, atol=4 * EPS)


def test_shrinking_takes_the_mean_of_pixels_into_the_parts_in_order() -> None:
    images = random(8, 2, 6, 4)
    canvases = shrink(images, 2)
    assert canvases.shape == (2, 2, 6, 4)
    for number, image in enumerate(images):
        canvas, part = divmod(number, 4)
        row, column = divmod(part, 2)
        for i in range(3):
            for j in range(2):
                mean = image[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean((1, 2))
                found = canvases[canvas, :, 3 * row + i, 2 * column + j]
                torch.testing.assert_close(found, mean, rtol=0, atol=4 * EPS)


def test_a_size_that_cannot_be_divided_is_refused() -> None:
    for call in (expand, shrink):
        with pytest.raises(FastDMError, match="partition is 3, but images of 8x9 pixels cannot be cut"):
            call(random(9, 1, 8, 9), 3)
