"""The update of the images against its formula in float64."""

import pytest
import torch
from torch import Tensor

from fastdm.kernels import sgd_step

FLOAT32_EPS = 2.0**-23
SHAPE = (5, 3, 7, 11)


def arguments(generator: torch.Generator) -> list[Tensor]:
    """Images, velocity, gradient, learning rate, black and white, of which the last two are reached."""
    tensors = [torch.randn(SHAPE, generator=generator) for _ in range(3)]
    rates = torch.tensor([0.5, 0.25, 2.0])
    return [*tensors, *(each[:, None, None] for each in (rates, torch.tensor([-1.0, -2.0, -0.5]), rates + 0.5))]


def test_images_and_velocity_are_those_of_float64(device: torch.device, generator: torch.Generator) -> None:
    given = arguments(generator)
    images, velocity, gradient, lr, black, white = (tensor.double() for tensor in given)
    velocity = 0.9 * velocity + gradient
    moved = (images - lr * velocity).clamp(black, white)
    on_device = [tensor.to(device, copy=True) for tensor in given]
    sgd_step(*on_device, momentum=0.9)
    # Two roundings, and 0.9 itself; lr · velocity is rounded, and the difference, of numbers below 20.
    torch.testing.assert_close(on_device[1].cpu().double(), velocity, rtol=0, atol=3 * 8 * FLOAT32_EPS)
    torch.testing.assert_close(on_device[0].cpu().double(), moved, rtol=0, atol=8 * 20 * FLOAT32_EPS)
    assert (on_device[0].cpu() == given[4]).any()
    assert (on_device[0].cpu() == given[5]).any()


def test_a_part_of_the_images_and_any_gradient_will_do(device: torch.device, generator: torch.Generator) -> None:
    given = [tensor.to(device) for tensor in arguments(generator)]
    gradient = given[2].to(memory_format=torch.channels_last)
    whole = [given[0].clone(), given[1].clone()]
    sgd_step(*whole, *given[2:], momentum=0.5)
    parts = [given[0].clone(), given[1].clone()]
    for rows in (slice(0, 2), slice(2, 5)):
        sgd_step(parts[0][rows], parts[1][rows], gradient[rows], *given[3:], momentum=0.5)
    assert all(torch.equal(*pair) for pair in zip(whole, parts, strict=True))


def test_nan_is_not_clamped(device: torch.device) -> None:
    """A run that diverges must not go on with white images."""
    images, velocity, gradient = (torch.zeros(1, 1, 1, 2, device=device) for _ in range(3))
    gradient[0, 0, 0, 1] = torch.nan
    ones = torch.ones(1, 1, 1, device=device)
    sgd_step(images, velocity, gradient, ones, -ones, ones, momentum=0.0)
    assert images.isnan().flatten().tolist() == [False, True]


def test_opcheck(device: torch.device, generator: torch.Generator) -> None:
    given = [tensor.to(device) for tensor in arguments(generator)]
    torch.library.opcheck(torch.ops.fastdm.sgd_step.default, (*given, 0.9))


def test_bad_arguments_are_refused(generator: torch.Generator) -> None:
    images, velocity, gradient, lr, black, white = arguments(generator)
    with pytest.raises(TypeError, match=r"velocity is torch\.float64"):
        sgd_step(images, velocity.double(), gradient, lr, black, white, momentum=0.9)
    with pytest.raises(ValueError, match=r"gradient has the shape \(2, 3, 7, 11\)"):
        sgd_step(images, velocity, gradient[:2], lr, black, white, momentum=0.9)
    with pytest.raises(ValueError, match=r"white has the shape \(2, 1, 1\)"):
        sgd_step(images, velocity, gradient, lr, black, white[:2], momentum=0.9)
    with pytest.raises(ValueError, match="they must be contiguous"):
        sgd_step(images.transpose(2, 3), velocity.transpose(2, 3), gradient.mT, lr, black, white, momentum=0.9)
