"""The networks of an iteration: drawn on the device from its key, with random weights or out of a pool."""

from typing import Protocol

import torch
from torch import Tensor, nn

from fastdm.kernels import uniform
from fastdm.networks.model import Network, WeightBuffer, reset_norms
from fastdm.networks.own import Builder, build_own
from fastdm.networks.trained import NetworkPool, in_memory_order, load_parameters, one_buffer

POOL_STREAM = 6  # the stream of `fastdm.kernels.uniform` that chooses a network and its states
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
        self._weights = pool.weights.to(device)
        self._buffers: dict[Network, Tensor] = {}  # in which parameters lie, where they are set by one copy
        if device.type == "cuda":
            self._weights = in_memory_order(self._weights, self.network).to(dtype)
            self._buffers = {network: one_buffer(network) for network in {self.network, self.expert}}
        self._row = torch.zeros(1, dtype=torch.int64, device=device)
        last = pool.states - 1
        reach = torch.arange(last, -1, -1).clamp(max=ahead)  # of every state: how much later the expert's may be
        later = torch.arange(pool.states)[:, None] + torch.minimum(torch.arange(ahead + 2), reach[:, None])
        # Kept on the device: each would be several launches an iteration. For `choose`: how many networks and states
        # there are, the last of each, how many states the expert is one of, and its state by the number drawn.
        self._counts = torch.tensor([pool.networks, pool.states], dtype=torch.float32, device=device)
        self._last = torch.tensor([pool.networks - 1, last], device=device)
        self._choices = (reach + 1).float().to(device)
        self._later = later.clamp(min=min(_COMPETENT, last)).to(device)

    def draw(self, key: Tensor) -> None:
        which, state, later = self.choose(key)
        self._set(self.network, self._weights[which, state][0])
        if self.expert is not self.network:
            self._set(self.expert, self._weights[which, later][0])

    def _set(self, network: Network, row: Tensor) -> None:
        if network in self._buffers:
            self._buffers[network].copy_(row)
        else:
            load_parameters(network, row)

    @property
    def bytes(self) -> int:
        expert = 0 if self.expert is self.network else _bytes(self.expert)
        return self._weights.nbytes + _bytes(self.network) + expert

    def choose(self, key: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Number of the network, its state, and the expert's state: int64 [1] each."""
        u = uniform(key, self._row, 3, POOL_STREAM)[0]
        # At most the last, because the float32 product may round up to its end; the table of states allows for that.
        which, state = (u[:2] * self._counts).long().minimum(self._last).split(1)
        number = (u[2:] * self._choices[state]).long()
        return which, state, self._later[state, number]


def _state(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _bytes(network: Network) -> int:
    return sum(parameter.nbytes for parameter in network.parameters())
