"""Networks of the user's own: any module that classifies, built by a function."""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from fastdm.errors import FastDMError

Builder = Callable[[], nn.Module]
"""Builds a network anew: a module that takes images [N, C, H, W] and gives logits [N, classes]."""


def network_name(network: str | Builder) -> str:
    """What results call a network: its name, or that of the function that builds it (of a partial, the inner one's)."""
    if isinstance(network, str):
        return network
    network = getattr(network, "func", network)
    return str(getattr(network, "__name__", type(network).__name__))


def build_own(builder: Builder, seed: int, device: torch.device | str = "cpu") -> nn.Module:
    """The module that a builder gives, on the device, in channels_last.

    Its weights are what it draws itself: PyTorch's global generators are seeded with `seed` meanwhile, and then are as
    before. Raises FastDMError for what is not a module.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = builder()
    if not isinstance(module, nn.Module):
        raise FastDMError(f"{network_name(builder)} gives a {type(module).__name__}; it must build a torch.nn.Module")
    return cast(nn.Module, module.to(device, memory_format=torch.channels_last))  # type: ignore[call-overload]


@torch.no_grad()
def check_own(builder: Builder, image_shape: tuple[int, int, int], num_classes: int) -> None:
    """Raise FastDMError for a network that cannot classify such images, having sent it two."""
    name, shape = network_name(builder), "x".join(map(str, image_shape))
    network = build_own(builder, 0).eval()
    try:
        logits = network(torch.zeros(2, *image_shape))
    except Exception as error:  # whatever a module of others raises
        lines = str(error).splitlines() or [type(error).__name__]
        raise FastDMError(f"{name} cannot take {shape} images: {lines[0]}") from error
    given = f"{list(logits.shape)}" if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
    if given != f"{[2, num_classes]}":
        raise FastDMError(f"{name} gives {given} for 2 images; it must give logits, a tensor {[2, num_classes]}")
