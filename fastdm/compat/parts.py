"""What keeps a network of the caller's in a CPU's cache and its memory mapped."""

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fastdm.networks.footprint import CACHE_BYTES
from fastdm.networks.fusing import has_fused_blocks

_IMAGE_BYTES = 128 * 4
"""Bytes that a layer is taken to give per pixel of an image: those of the public ConvNet's first one. A block that is
one op gives a quarter, its pooled result."""


def images_at_once(network: nn.Module | None, images: Tensor) -> int | None:
    """How many images [N, C, H, W], or others [N, …], go through a network together; None for all, as they are.

    On a CPU as many as keep what a layer gives in its cache, unless the images of a batch share BatchNorm's statistics.
    None for a network that is not known.
    """
    if network is None or images.device.type != "cpu" or _joins_images(network):
        return None
    pixels = images.shape[2:].numel() // (4 if has_fused_blocks(network) else 1)
    return max(1, CACHE_BYTES // (_IMAGE_BYTES * max(1, pixels)))


def _joins_images(network: nn.Module) -> bool:
    norms = (module for module in network.modules() if isinstance(module, _BatchNorm))
    return any(norm.training or norm.running_mean is None for norm in norms)


def keep_freed_memory(device: torch.device) -> None:
    """Let glibc keep, on a CPU, up to 64 MiB of what is freed for what is allocated next.

    It gives back to the system what exceeds twice the largest block that was ever mapped and freed, if that had less
    than 32 MiB, and a layer's results would then be mapped again, page by page, in every pass. The block that is freed
    here is never touched.
    """
    if device.type == "cpu":
        torch.empty(_LARGEST_BLOCK, dtype=torch.uint8, device=device)


_LARGEST_BLOCK = (32 << 20) - (64 << 10)
