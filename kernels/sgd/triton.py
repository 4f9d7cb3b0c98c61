"""The update of the synthetic images as a Triton kernel."""

import triton
import triton.language as tl
from torch import Tensor

from .. import launch

_WARPS = 4
_BLOCK = 1024


@triton.jit
def sgd_step_kernel(
    images_ptr,
    velocity_ptr,
    gradient_ptr,
    lr_ptr,
    black_ptr,
    white_ptr,
    momentum,
    size,
    C: tl.constexpr,
    PIXELS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = i < size
    channel = (i // PIXELS % C).to(tl.int32)
    velocity = tl.cast(momentum, tl.float32) * tl.load(velocity_ptr + i, mask=mask, other=0)
    velocity += tl.load(gradient_ptr + i, mask=mask, other=0)
    moved = tl.load(images_ptr + i, mask=mask, other=0) - tl.load(lr_ptr + channel) * velocity
    black = tl.load(black_ptr + channel)
    white = tl.load(white_ptr + channel)
    # Not the minimum and maximum, which would make a bound of NaN.
    moved = tl.where(moved < black, black, tl.where(moved > white, white, moved))
    tl.store(velocity_ptr + i, velocity, mask=mask)
    tl.store(images_ptr + i, moved, mask=mask)


def sgd_step(
    images: Tensor, velocity: Tensor, gradient: Tensor, lr: Tensor, black: Tensor, white: Tensor, momentum: float
) -> None:
    _, channels, height, width = images.shape
    launch.start(
        sgd_step_kernel,
        (triton.cdiv(images.numel(), _BLOCK),),
        images_ptr=images,
        velocity_ptr=velocity,
        gradient_ptr=gradient.contiguous(),
        lr_ptr=lr.contiguous(),
        black_ptr=black.contiguous(),
        white_ptr=white.contiguous(),
        momentum=momentum,
        size=images.numel(),
        C=channels,
        PIXELS=height * width,
        BLOCK=_BLOCK,
        num_warps=_WARPS,
    )
