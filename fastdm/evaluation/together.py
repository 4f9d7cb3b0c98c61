"""Networks of one architecture trained together on a GPU: an update of each is a branch of one CUDA graph.

Small batches leave most of a GPU idle, and their launches keep the host busy. The branches of a graph run at the same
time, and cost one launch. Whatever changes from batch to batch is read from the device, so that an epoch needs three
graphs at most: for its first batch, which draws the order of the images, for those that follow, and for a smaller last.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

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

MOST_NETWORKS = 32
_MOST_GRAPHS = 3
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
        self._place = torch.zeros(1, dtype=torch.int64, device=device)  # in the order, of the next batch
        self._rate = torch.tensor(protocol.lr_net, dtype=torch.float32, device=device)
        self._optimizer = sgd(network, protocol.lr_net)
        for group in self._optimizer.param_groups:  # its constructor would wait for a tensor's value
            group["lr"] = self._rate
        self.momentum = [torch.zeros_like(parameter) for parameter in network.parameters()]
        for parameter, momentum in zip(network.parameters(), self.momentum, strict=True):
            self._optimizer.state[parameter]["momentum_buffer"] = momentum
        draw_weights(network, examples, protocol, number)

    @property
    def state(self) -> list[Tensor]:
        """All that an update changes."""
        weights = [*self._network.parameters(), *self._network.buffers()]
        return [self._key, self._order, self._place, *self.momentum, *(tensor.detach() for tensor in weights)]

    def begin(self, epoch: int) -> None:
        """Set what the host decides about an epoch."""
        if epoch and learning_rate(self._protocol, epoch) != learning_rate(self._protocol, epoch - 1):
            self._rate.fill_(learning_rate(self._protocol, epoch))
        if forgets_momentum(self._protocol, epoch):
            torch._foreach_zero_(self.momentum)

    def update(self, batch: "_Batch") -> None:
        """Update the network by the next batch of the epoch."""
        if batch.draws_order:
            u = uniform(self._key, self._rows[:1], len(self._examples), ORDER_STREAM)[0]
            self._order.copy_(u.argsort(stable=True))
            self._place.zero_()
        rows = self._rows[: batch.size]
        index = self._order[(self._place + rows) % len(self._order)]
        self._optimizer.zero_grad()
        add_gradients(self._network, self._examples, self._protocol, index, self._key, rows, self._at_once, self._dtype)
        self._optimizer.step()
        self._key[1:].add_(1)
        self._place.add_(batch.size)


class _Batch(NamedTuple):
    """What a graph is recorded for."""

    draws_order: bool
    size: int


def _batches(images: int, protocol: Protocol) -> list[_Batch]:
    """Those of an epoch."""
    return [_Batch(first == 0, min(protocol.batch, images - first)) for first in range(0, images, protocol.batch)]


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
        batches = _batches(len(examples), protocol)
        updates: dict[_Batch, Callable[[], object]]
        if device.type == "cuda":
            self._streams = [torch.cuda.Stream(device) for _ in self._branches]
            state = [tensor for branch in self._branches for tensor in branch.state]
            updates = {batch: captured(partial(self._fork, batch), state) for batch in dict.fromkeys(batches)}
        else:
            updates = {batch: partial(self._update_all, batch) for batch in batches}
        self._updates = [updates[batch] for batch in batches]

    @property
    def momentum(self) -> list[list[Tensor]]:
        """That of every network's parameters, as it is now."""
        return [branch.momentum for branch in self._branches]

    def run(self, after_step: Callable[[int], None] = lambda done: None) -> None:
        """Train all networks; after_step: called with the number of updates that each has had."""
        for step in range(self._steps):
            epoch, batch = divmod(step, len(self._updates))
            if batch == 0:
                for branch in self._branches:
                    branch.begin(epoch)
            self._updates[batch]()
            after_step(step + 1)

    def _update_all(self, batch: _Batch) -> None:
        for branch in self._branches:
            branch.update(batch)

    def _fork(self, batch: _Batch) -> Tensor:
        """An update of every network, each on a stream of its own, which all join the current one again."""
        joined = torch.cuda.current_stream()
        for branch, stream in zip(self._branches, self._streams, strict=True):
            stream.wait_stream(joined)
            with torch.cuda.stream(stream):
                branch.update(batch)
        for stream in self._streams:
            joined.wait_stream(stream)
        return self._branches[0].state[0]


def networks_together(network: Network, examples: LabelledImages, protocol: Protocol) -> int:
    """How many such networks are trained by one graph on the device of the examples: 0 on a CPU, and where the memory
    does not hold the graphs of one."""
    device = examples.images.device
    if device.type != "cuda":
        return 0
    channels, height, width = examples.images.shape[1:]
    batch = min(protocol.batch, len(examples))
    passes = _PASSES * batch * activations(network, (channels, height, width), torch.float32).total
    weights = 4 * sum(parameter.nbytes for parameter in network.parameters())
    each = passes * min(_MOST_GRAPHS, -(-len(examples) // protocol.batch)) + weights
    return min(MOST_NETWORKS, free_memory(device) // 2 // each)
