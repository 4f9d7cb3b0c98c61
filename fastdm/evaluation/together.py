"""Networks of one architecture trained together on a GPU: an update of each is a branch of one CUDA graph.

Small batches leave most of a GPU idle, and their launches keep the host busy. The branches of a graph run at the same
time, and cost one launch.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from fastdm.evaluation.protocol import Protocol
from fastdm.evaluation.training import (
    ORDER_STREAM,
    LabelledImages,
    add_gradients,
    draw_weights,
    forgets_momentum,
    images_at_once,
    learning_rate,
    sgd,
    training_key,
)
from fastdm.kernels import uniform
from fastdm.networks.footprint import activations
from fastdm.networks.model import Network
from fastdm.system.cuda_graph import captured
from fastdm.system.device import free_memory

MOST_BATCHES = 4
"""Batches of an epoch, each of which needs a graph of its own: larger sets keep a GPU busy by themselves."""

MOST_NETWORKS = 32
_PASSES = 3  # the memory of a training, in activations of a batch


class _Branch:
    """One training, which reads from the device whatever changes from update to update."""

    def __init__(
        self, network: Network, examples: LabelledImages, protocol: Protocol, number: int, dtype: torch.dtype
    ) -> None:
        device = examples.images.device
        self._network, self._examples, self._protocol, self._dtype = network.train(), examples, protocol, dtype
        self._at_once = images_at_once(network, examples, protocol.batch)
        self._key = training_key(examples, protocol, number)
        self._rows = torch.arange(min(protocol.batch, len(examples)), device=device)
        self._order = torch.zeros(len(examples), dtype=torch.int64, device=device)
        self._rate = torch.tensor(protocol.lr_net, dtype=torch.float32, device=device)
        self._optimizer = sgd(network, protocol.lr_net)
        for group in self._optimizer.param_groups:  # its constructor would wait for a tensor's value
            group["lr"] = self._rate
        self._momentum = [torch.zeros_like(parameter) for parameter in network.parameters()]
        for parameter, momentum in zip(network.parameters(), self._momentum, strict=True):
            self._optimizer.state[parameter]["momentum_buffer"] = momentum
        draw_weights(network, examples, protocol, number)

    @property
    def state(self) -> list[Tensor]:
        """All that an update changes."""
        weights = [*self._network.parameters(), *self._network.buffers()]
        return [self._key, self._order, *self._momentum, *(tensor.detach() for tensor in weights)]

    def begin(self, epoch: int) -> None:
        """Set what the host decides about an epoch."""
        if epoch and learning_rate(self._protocol, epoch) != learning_rate(self._protocol, epoch - 1):
            self._rate.fill_(learning_rate(self._protocol, epoch))
        if forgets_momentum(self._protocol, epoch):
            torch._foreach_zero_(self._momentum)

    def update(self, batch: int) -> None:
        """Update the network by a batch of the epoch; the first draws the epoch's order."""
        if batch == 0:
            u = uniform(self._key, self._rows[:1], len(self._examples), ORDER_STREAM)[0]
            self._order.copy_(u.argsort(stable=True))
        size = self._protocol.batch
        index = self._order[batch * size : (batch + 1) * size]
        self._optimizer.zero_grad()
        add_gradients(
            self._network,
            self._examples,
            self._protocol,
            index,
            self._key,
            self._rows[: len(index)],
            self._at_once,
            self._dtype,
        )
        self._optimizer.step()
        self._key[1:].add_(1)


class Together:
    """The trainings of several networks, all at the same update.

    networks: numbers and the networks that are trained as `train_network` trains those numbers: the same draws, the
    same updates. On a GPU the updates are recorded; raises RuntimeError where they cannot be.
    """

    def __init__(
        self,
        networks: Sequence[tuple[int, Network]],
        examples: LabelledImages,
        protocol: Protocol,
        dtype: torch.dtype,
    ) -> None:
        device = examples.images.device
        self._branches = [_Branch(network, examples, protocol, number, dtype) for number, network in networks]
        self._steps = protocol.steps(len(examples))
        batches = range(batches_of(examples, protocol))
        self._updates: list[Callable[[], object]] = [partial(self._update_all, batch) for batch in batches]
        if device.type == "cuda":
            self._streams = [torch.cuda.Stream(device) for _ in self._branches]
            state = [tensor for branch in self._branches for tensor in branch.state]
            self._updates = [captured(partial(self._fork, batch), state) for batch in batches]

    def run(self, after_step: Callable[[int], None] = lambda done: None) -> None:
        """Train all networks; after_step: called with the number of updates that each has had."""
        for step in range(self._steps):
            epoch, batch = divmod(step, len(self._updates))
            if batch == 0:
                for branch in self._branches:
                    branch.begin(epoch)
            self._updates[batch]()
            after_step(step + 1)

    def _update_all(self, batch: int) -> None:
        for branch in self._branches:
            branch.update(batch)

    def _fork(self, batch: int) -> Tensor:
        """An update of every network, each on a stream of its own, which all join the current one again."""
        joined = torch.cuda.current_stream()
        for branch, stream in zip(self._branches, self._streams, strict=True):
            stream.wait_stream(joined)
            with torch.cuda.stream(stream):
                branch.update(batch)
        for stream in self._streams:
            joined.wait_stream(stream)
        return self._branches[0].state[0]


def batches_of(examples: LabelledImages, protocol: Protocol) -> int:
    """Batches of an epoch."""
    return -(-len(examples) // protocol.batch)


def networks_together(network: Network, examples: LabelledImages, protocol: Protocol) -> int:
    """How many such networks are trained together on the device of the examples: at least 1, which means none are."""
    device = examples.images.device
    if device.type != "cuda" or batches_of(examples, protocol) > MOST_BATCHES:
        return 1
    channels, height, width = examples.images.shape[1:]
    batch = min(protocol.batch, len(examples))
    passes = _PASSES * batch * activations(network, (channels, height, width), torch.float32).total
    weights = 4 * sum(parameter.nbytes for parameter in network.parameters())
    each = passes * batches_of(examples, protocol) + weights
    return max(1, min(MOST_NETWORKS, free_memory(device) // 2 // each))
