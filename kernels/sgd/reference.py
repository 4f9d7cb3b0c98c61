"""The update of the synthetic images in plain PyTorch: the definition of correct."""

from torch import Tensor


def sgd_step(
    images: Tensor, velocity: Tensor, gradient: Tensor, lr: Tensor, black: Tensor, white: Tensor, momentum: float
) -> None:
    """Change images and velocity in place; see the public function."""
    velocity.mul_(momentum).add_(gradient)
    images.addcmul_(velocity, lr, value=-1).clamp_(black, white)
