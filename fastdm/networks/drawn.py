"""The networks of an iteration: drawn on the device from its key, with random weights or out of a pool."""

from typing import Protocol

import torch
from torch import Tensor, nn

from fastdm.kernels import draw_snapshots
from fastdm.networks.model import Network, WeightBuffer, reset_norms
from fastdm.networks.own import Builder, build_own
from fastdm.networks.trained import NetworkPool, in_memory_order, load_parameters, one_buffer

POOL_STREAM = 6  # the stream of `fastdm.kernels.uniform` that a network and its states are drawn from
_BUILT = (1 << 61) - 1
"""Seeds of networks that are built anew are below this prime, which keeps most apart from those of evaluations."""

_COMPETENT = 2
"""The first snapshot whose classifier is asked: before it, the cross-entropy's gradient is noise."""


class DrawnNetworks(Protocol):
    """network: what images are matched in; expert: what classifies synthetic images, which may be the same one."""

    network: Network
    expert: Network

    def draw(self, key: Tensor) -> None:
        """Draw the weights of an iteration anew, in place and without waiting for the device.

        key: int64 [2], (seed, iteration), on the device.
        """
        ...

    @property
    def bytes(self) -> int:
        """What they take on the device: their weights, and the pool that those come from."""
        ...


class RandomNetworks:
    """A new random network in every iteration, as the paper has it: its weights are views of one buffer from now on."""

    def __init__(self, network: Network) -> None:
        self.network = self.expert = network
        reset_norms(network)
        self._weights = WeightBuffer(network)
        for parameter, drawn in zip(self._weights.parameters, self._weights.views, strict=True):
            parameter.data = drawn

    def draw(self, key: Tensor) -> None:
        self._weights.draw(key)

    @property
    def bytes(self) -> int:
        return _bytes(self.network)


class BuiltNetworks:
    """A network of the user's own in every iteration, of any layers: its function builds it anew, on the host.

    The weights are those that the module draws itself, by a seed that follows from the key.
    """

    def __init__(self, network: Network, builder: Builder) -> None:
        self.network = self.expert = network
        self._builder = builder

    def draw(self, key: Tensor) -> None:
        seed, iteration = map(int, key.tolist())
        built = build_own(self._builder, ((seed << 32) + iteration) % _BUILT)
        with torch.no_grad():
            for mine, drawn in zip(_state(self.network), _state(built), strict=True):
                mine.copy_(drawn)

    @property
    def bytes(self) -> int:
        return _bytes(self.network)


class TrainedNetworks:
    """A snapshot of a pool in every iteration, uniformly of all networks and states.

    Its expert is a snapshot of the same network, uniformly 0 to `ahead` states later, at least number 2 and at most the
    last; with `ahead` 0 it is the network itself.
    """

    def __init__(self, pool: NetworkPool, ahead: int, device: torch.device, dtype: torch.dtype) -> None:
        self.network = pool.build(device, dtype)
        self.expert = pool.build(device, dtype) if ahead else self.network
        self._ahead = ahead
        self._first = min(_COMPETENT, pool.states - 1)
        self._weights = pool.weights.to(device).contiguous()
        self._buffers: list[Tensor] = []  # in which the parameters lie, where they are written at once
        if device.type == "cuda":
            self._weights = in_memory_order(self._weights, self.network).to(dtype)
            self._buffers = [one_buffer(network) for network in self._networks]

    @property
    def _networks(self) -> list[Network]:
        return [self.network] if self.expert is self.network else [self.network, self.expert]

    def draw(self, key: Tensor) -> None:
        self.choose(key)

    def choose(self, key: Tensor) -> Tensor:
        """As `draw`; returns int64 [3], on the device: number of the network, its state, and the expert's state."""
        rows = self._buffers or [torch.empty_like(self._weights[0, 0]) for _ in self._networks]
        expert = rows[1] if len(rows) > 1 else None
        chosen = draw_snapshots(
            rows[0], expert, self._weights, key, ahead=self._ahead, first=self._first, stream=POOL_STREAM
        )
        if not self._buffers:
            for network, row in zip(self._networks, rows, strict=True):
                load_parameters(network, row)
        return chosen

    @property
    def bytes(self) -> int:
        return self._weights.nbytes + sum(map(_bytes, self._networks))


def _state(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _bytes(network: Network) -> int:
    return sum(parameter.nbytes for parameter in network.parameters())
