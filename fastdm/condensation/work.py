"""What an iteration has to compute and to move, counted without computing it."""

from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fastdm.condensation.settings import Settings
from fastdm.data.pool import Pool
from fastdm.networks.drawn import DrawnNetworks
from fastdm.networks.footprint import activations


@dataclass(frozen=True)
class Work:
    """What one iteration computes, moves and reads.

    classes: those of the process. flops: of convolutions and linear layers, multiplications and additions. moved: bytes
    of what layers give, written and read once. read: bytes of real images.
    """

    classes: int
    flops: float
    moved: float
    read: int


def count_work(networks: DrawnNetworks, real: Pool, settings: Settings, dtype: torch.dtype) -> Work:
    """The work of an iteration on the classes of `real`.

    A real image goes forward; a synthetic one forward and back, to its pixels only, as often as there are networks.
    """
    channels, height, width = real.images.shape[1:]
    forward = flops_of(networks.network, (channels, height, width))
    count = int(real.class_sizes.clamp(max=settings.batch_real).sum())
    synthetic = real.num_classes * settings.ipc * settings.partition**2
    networks_passed = 2 if settings.ce_weight and networks.expert is not networks.network else 1
    passes = count + 2 * networks_passed * synthetic
    moved = 2 * activations(networks.network, (channels, height, width), dtype).total
    return Work(real.num_classes, passes * forward, passes * moved, count * channels * height * width)


def flops_of(network: nn.Module, image_shape: tuple[int, int, int]) -> int:
    """FLOPs of one image's way through the layers of a network, counted on the meta device, which computes nothing."""
    meta = deepcopy(network).to("meta", torch.float32)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        meta(torch.empty(2, *image_shape, device="meta"))
    return int(counter.get_total_flops()) // 2
