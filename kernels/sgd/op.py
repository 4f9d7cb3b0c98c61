"""`sgd_step`: checks, schema."""

import torch
from torch import Tensor

from ..checks import check_tensor
from ..dispatch import define


def sgd_step(
    images: Tensor, velocity: Tensor, gradient: Tensor, lr: Tensor, black: Tensor, white: Tensor, *, momentum: float
) -> None:
    """Move images by one step of gradient descent with momentum, in place, and keep them between black and white.

    velocity ← momentum · velocity + gradient; images ← clamp(images − lr · velocity, black, white); NaN stays NaN.

    images, velocity: float32 [N, C, H, W], contiguous; gradient: the same shape. lr, black, white: float32 [C, 1, 1].
    Raises TypeError for a wrong dtype, ValueError for wrong shapes and devices.

    >>> import torch
    >>> from fastdm.kernels import sgd_step
    >>> images, velocity = torch.zeros(2, 1, 1, 1, 2)
    >>> sgd_step(
    ...     images, velocity, torch.ones(1, 1, 1, 2), *torch.tensor([0.5, -2.0, 2.0]).view(3, 1, 1, 1), momentum=0.9
    ... )
    >>> images
    tensor([[[[-0.5000, -0.5000]]]])
    """
    for name, tensor in (("images", images), ("velocity", velocity), ("gradient", gradient)):
        check_tensor(name, tensor, 4, torch.float32, images.device)
        if tensor.shape != images.shape:
            raise ValueError(f"{name} has the shape {tuple(tensor.shape)}; it must be that of images, {images.shape}")
    if not (images.is_contiguous() and velocity.is_contiguous()):
        raise ValueError("images and velocity are changed in place; they must be contiguous")
    for name, tensor in (("lr", lr), ("black", black), ("white", white)):
        check_tensor(name, tensor, 3, torch.float32, images.device)
        if tensor.shape != (images.shape[1], 1, 1):
            raise ValueError(f"{name} has the shape {tuple(tensor.shape)}; it must be [{images.shape[1]}, 1, 1]")
    torch.ops.fastdm.sgd_step(images, velocity, gradient, lr, black, white, momentum)


@define(
    "sgd_step",
    "(Tensor(a!) images, Tensor(b!) velocity, Tensor gradient, Tensor lr, Tensor black, Tensor white, float momentum)"
    " -> ()",
)
def _(
    images: Tensor, velocity: Tensor, gradient: Tensor, lr: Tensor, black: Tensor, white: Tensor, momentum: float
) -> None: ...
