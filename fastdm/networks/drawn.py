"""The networks of an iteration: drawn on the device from its key, with random weights or out of a pool."""

from typing import Protocol

import torch
from torch import Tensor

from fastdm.kernels import uniform
from fastdm.networks.model import Network, WeightBuffer, reset_norms
from fastdm.networks.trained import NetworkPool, load_parameters

POOL_STREAM = 6  # the stream of `fastdm.kernels.uniform` that chooses a network and its states
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


class TrainedNetworks:
    """A snapshot of a pool in every iteration, uniformly of all networks and states.

    Its expert is a snapshot of the same network, uniformly 0 to `ahead` states later, at least number 2 and at most the
    last; with `ahead` 0 it is the network itself.
    """

    def __init__(self, pool: NetworkPool, ahead: int, device: torch.device, dtype: torch.dtype) -> None:
        self.network = pool.build(device, dtype)
        self.expert = pool.build(device, dtype) if ahead else self.network
        self._weights = pool.weights.to(device).flatten(0, 1)
        self._networks, self._states, self._ahead = pool.networks, pool.states, ahead
        self._row = torch.zeros(1, dtype=torch.int64, device=device)

    def draw(self, key: Tensor) -> None:
        first, state, later = self.choose(key)
        load_parameters(self.network, self._weights.index_select(0, first + state)[0])
        if self.expert is not self.network:
            load_parameters(self.expert, self._weights.index_select(0, first + later)[0])

    @property
    def bytes(self) -> int:
        expert = 0 if self.expert is self.network else _bytes(self.expert)
        return self._weights.nbytes + _bytes(self.network) + expert

    def choose(self, key: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Row of the network's first state, its state, and the expert's state: int64 [1] each."""
        last = self._states - 1
        u = uniform(key, self._row, 3, POOL_STREAM)[0]
        # Clamped because the float32 product may round up to its end.
        network = (u[:1] * self._networks).long().clamp_(max=self._networks - 1)
        state = (u[1:2] * self._states).long().clamp_(max=last)
        reach = (last - state).clamp_(max=self._ahead)
        later = state + (u[2:] * (reach + 1)).long().minimum(reach)
        return network * self._states, state, later.clamp_(min=min(_COMPETENT, last))


def _bytes(network: Network) -> int:
    return sum(parameter.nbytes for parameter in network.parameters())
