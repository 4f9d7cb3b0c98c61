"""Memory that a network's activations take."""

import threading
from copy import deepcopy
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from fastdm.networks.model import Network
from fastdm.system.device import undisturbed

CACHE_BYTES = 16 << 20
"""On a CPU, the largest activation of one pass. It then stays in the cache, and below glibc's 32 MiB threshold above
which every allocation is mapped afresh, one page fault per 4 KiB."""


@dataclass(frozen=True)
class Activations:
    """Bytes that one image needs on its way through a network.

    total: of all layers' results together, which autograd keeps; peak: of the results that are needed at the same time
    without it; largest: of the largest single result; between: of what goes into a layer and what comes out, without
    anything in the layer, at most; both_ways: of what exists at the same time on the way to the features and back to
    the image, where parameters take no gradient.
    """

    total: int
    peak: int
    largest: int
    between: int
    both_ways: int

    @property
    def in_cache(self) -> int:
        """How many images go through any layer without leaving a CPU's cache, at least 1."""
        return max(1, CACHE_BYTES // self.largest)


class _CountBytes(TorchDispatchMode):
    """Notes the bytes of what every op returns, and the most that exist at a time."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.results: list[int] = []
        self.peak = 0
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            in_place = any(tensor is argument for argument in args)
            if isinstance(tensor, Tensor) and not (tensor._is_view() or in_place):
                self.results.append(_bytes(tensor))
                # Its storage, since what autograd keeps is not a Python object.
                storage = tensor.untyped_storage()
                self._live[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        # On a GPU, PyTorch's GroupNorm copies its images, which are channels last there.
        copied = _bytes(args[0]) if func is torch.ops.aten.native_group_norm.default else 0
        self._live = {key: entry for key, entry in self._live.items() if not entry[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self._live.values()) + copied)
        return result


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


_ANOMALY = threading.Lock()
"""Anomaly mode reads the values of gradients, which meta tensors do not have, and is the whole process's."""


@undisturbed()
def activations(network: Network, image_shape: tuple[int, int, int], dtype: torch.dtype) -> Activations:
    """Count on the meta device, which computes nothing. Two images are sent, since BatchNorm refuses one."""
    network = deepcopy(network).to("meta", dtype).requires_grad_(False)
    images = torch.empty(2, *image_shape, dtype=dtype, device="meta")
    with torch.no_grad(), _CountBytes() as forward:
        x, ends = images, [_bytes(images)]
        for layer in network.features:
            x = layer(x)
            ends.append(_bytes(x))
    del x
    with _ANOMALY, torch.autograd.set_detect_anomaly(False), torch.enable_grad(), _CountBytes() as both:
        images.requires_grad_()
        features = network.embed(images)
        torch.autograd.grad(features, images, torch.empty_like(features))
    image = ends[0] // 2
    sizes = [image, *(size // 2 for size in forward.results)]
    return Activations(
        total=sum(sizes),
        peak=max(image, forward.peak // 2),
        largest=max(sizes),
        between=max(before + after for before, after in pairwise(ends)) // 2,
        both_ways=image + both.peak // 2,
    )


def images_in_cache(network: Network, image_shape: tuple[int, int, int], dtype: torch.dtype) -> int:
    """How many images go through any layer of the network without leaving a CPU's cache, at least 1."""
    return activations(network, image_shape, dtype).in_cache
