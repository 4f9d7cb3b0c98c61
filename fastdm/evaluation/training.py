"""Train one network on labelled images."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from fastdm.augmentation import augment
from fastdm.data.pool import Pool
from fastdm.evaluation.mixing import draw_mixture, draw_tables
from fastdm.evaluation.protocol import Protocol
from fastdm.kernels import uniform
from fastdm.networks.footprint import images_in_cache
from fastdm.networks.model import Network, initialise
from fastdm.synthetic.synthetic_set import SyntheticSet

MOMENTUM = 0.9
WEIGHT_DECAY = 5e-4
ORDER_STREAM = 5  # the stream of `fastdm.kernels.uniform` that shuffles the training images
_OWN_AT_ONCE = 64  # images that go through a module of the user's own on a CPU, untrained
_SEED_BIT = 1 << 62  # keeps the draws apart from those of a condensation with the same seed


@dataclass(frozen=True)
class LabelledImages:
    """Images with labels on a device; a uint8 pool stays one, and is normalised batch by batch.

    images: uint8 or normalised float32 [N, C, H, W]; labels: int64 [N]; mean, std: float32 [C], for uint8 only; soft:
    float32 [N, classes], probabilities to train for in place of the labels.
    """

    images: Tensor
    labels: Tensor
    mean: Tensor | None
    std: Tensor | None
    soft: Tensor | None = None

    @property
    def targets(self) -> Tensor:
        """What is trained for: `soft` if it is there, else `labels`."""
        return self.labels if self.soft is None else self.soft

    @classmethod
    def of(
        cls,
        images: SyntheticSet | Pool,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device,
        *,
        soft: bool = False,
    ) -> "LabelledImages":
        """The images of a pool, or of a set, whose partition is decoded; soft: with the soft labels of the set."""
        if isinstance(images, SyntheticSet):
            decoded = images.expand()
            probabilities = decoded.soft_labels.float().to(device) if soft and decoded.soft_labels is not None else None
            return cls(decoded.images.detach().to(device), decoded.labels.to(device), None, None, probabilities)
        labels = images.labels.to(device)
        pixels = images.to(device).images
        normalisation = (torch.tensor(values, dtype=torch.float32, device=device) for values in (mean, std))
        return cls(pixels, labels, *normalisation)

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, index: Tensor, tables: Sequence[Tensor] = ()) -> Tensor:
        """Normalised images of the rows `index`, augmented by one row of each table per image."""
        return augment(self.images, tables, index=index, mean=self.mean, std=self.std, channels_last=True)


Momentum = Callable[[], list[Tensor]]


@dataclass(frozen=True)
class Start:
    """Where an interrupted training goes on: done: updates that are done; momentum: of every parameter then."""

    done: int
    momentum: Sequence[Tensor]


def draw_weights(network: nn.Module, examples: LabelledImages, protocol: Protocol, number: int) -> None:
    """The weights from which `train_network` starts; a module of the user's own keeps those that it has."""
    if isinstance(network, Network):
        initialise(network, training_key(examples, protocol, number))


def training_key(examples: LabelledImages, protocol: Protocol, number: int) -> Tensor:
    """(seed, step) of the first update of a training: those of other numbers have steps of their own."""
    return torch.tensor(
        [protocol.seed ^ _SEED_BIT, number * protocol.steps(len(examples))], device=examples.images.device
    )


def train_network(
    network: nn.Module,
    examples: LabelledImages,
    protocol: Protocol,
    number: int,
    dtype: torch.dtype,
    after_step: Callable[[int, Momentum], None] = lambda done, momentum: None,
    start: Start | None = None,
) -> None:
    """Draw the weights of `network` as number `number` of the protocol's seed (see `draw_weights`), and train it.

    dtype: of the forward pass; weights and gradients are float32. Nothing waits for the device. after_step: called with
    the number of updates that are done and a function that gives the momentum of every parameter. start: go on from
    there, with the weights that the network has: what follows is what an uninterrupted training does.
    """
    steps, per_epoch = protocol.steps(len(examples)), -(-len(examples) // protocol.batch)
    key = training_key(examples, protocol, number)
    rows = torch.arange(min(protocol.batch, len(examples)), device=examples.images.device)
    at_once = images_at_once(network.train(), examples, protocol.batch)
    optimizer = sgd(network, protocol.lr_net)
    first = 0
    if start is None:
        draw_weights(network, examples, protocol, number)
    else:
        first = start.done
        for parameter, momentum in zip(network.parameters(), start.momentum, strict=True):
            # In the memory format of the parameter: the fused optimizer pairs what lies at the same place in memory.
            optimizer.state[parameter]["momentum_buffer"] = torch.empty_like(parameter).copy_(momentum)

    order = rows
    for step in range(first, steps):
        epoch, batch = divmod(step, per_epoch)
        if batch == 0 or step == first:
            key[1:].fill_(number * steps + epoch * per_epoch)
            order = uniform(key, rows[:1], len(examples), ORDER_STREAM)[0].argsort(stable=True)
            optimizer = _schedule(optimizer, network, protocol, epoch, begins=batch == 0)
        key[1:].fill_(number * steps + step)
        index = order[batch * protocol.batch : (batch + 1) * protocol.batch]
        optimizer.zero_grad()
        add_gradients(network, examples, protocol, index, key, rows[: len(index)], at_once, dtype)
        optimizer.step()
        after_step(step + 1, partial(_momentum, network, optimizer))


def add_gradients(
    network: nn.Module,
    examples: LabelledImages,
    protocol: Protocol,
    index: Tensor,
    key: Tensor,
    rows: Tensor,
    at_once: int,
    dtype: torch.dtype,
) -> None:
    """Add the gradients of the mean loss of a batch, the images `index`, augmented by the draws of (seed, step).

    key: that pair, int64 [2]; rows: 0 to the size of the batch; all on the device. at_once: images that go through the
    network together. Everything is read from the device, so that it can be recorded in a graph.
    """
    for part in _parts(examples, protocol, index, key, rows, at_once):
        with torch.autocast(examples.images.device.type, dtype, enabled=dtype != torch.float32):
            logits = network(part.images)
        (part.loss(logits.float()) / len(index)).backward()


def _momentum(network: nn.Module, optimizer: torch.optim.SGD) -> list[Tensor]:
    return [optimizer.state[parameter]["momentum_buffer"] for parameter in network.parameters()]


@dataclass(frozen=True)
class _Part:
    """Some images of a batch, augmented, with their targets: classes, int64 [n], or probabilities [n, classes]; others,
    share: with cutmix the targets of their partners, and the share of the image that is its own."""

    images: Tensor
    targets: Tensor
    others: Tensor | None = None
    share: Tensor | None = None

    def loss(self, logits: Tensor) -> Tensor:
        """The cross-entropy, summed over the images."""
        loss = functional.cross_entropy(logits, self.targets, reduction="sum")
        if self.others is None or self.share is None:
            return loss
        other = functional.cross_entropy(logits, self.others, reduction="sum")
        mixed: Tensor = (self.share * loss + (1 - self.share) * other).sum()
        return mixed


def _parts(
    examples: LabelledImages, protocol: Protocol, index: Tensor, key: Tensor, rows: Tensor, at_once: int
) -> Iterator[_Part]:
    """The batch of the rows `index`, of `at_once` images at a time."""
    size = (examples.images.shape[2], examples.images.shape[3])
    tables = draw_tables(protocol, key, rows, size)
    targets = examples.targets[index]
    parts = [slice(first, first + at_once) for first in range(0, len(index), at_once)]
    if protocol.name == "dm" or not protocol.cutmix:
        for part in parts:
            yield _Part(examples.batch(index[part], [table[part] for table in tables]), targets[part])
        return
    mixture = draw_mixture(key, rows, size)
    images, others = mixture(examples.batch(index, tables)), targets[mixture.partner]
    for part in parts:
        yield _Part(images[part], targets[part], others[part], mixture.share)


def _schedule(
    optimizer: torch.optim.SGD, network: nn.Module, protocol: Protocol, epoch: int, begins: bool
) -> torch.optim.SGD:
    """The optimizer of an epoch, counted from 0; begins: whether it is the epoch's first update."""
    if begins and forgets_momentum(protocol, epoch):
        optimizer = sgd(network, protocol.lr_net)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(protocol, epoch)
    return optimizer


def learning_rate(protocol: Protocol, epoch: int) -> float:
    """The learning rate of an epoch, counted from 0."""
    if protocol.name == "dm":
        return 0.1 * protocol.lr_net if epoch >= protocol.epochs // 2 + 2 else protocol.lr_net
    milestones = (2 * protocol.epochs // 3, 5 * protocol.epochs // 6)
    return protocol.lr_net * 0.2 ** sum(epoch >= milestone for milestone in milestones)


def forgets_momentum(protocol: Protocol, epoch: int) -> bool:
    """Whether an epoch, counted from 0, begins without momentum."""
    return protocol.name == "dm" and epoch == protocol.epochs // 2 + 2


def sgd(network: nn.Module, lr: float) -> torch.optim.SGD:
    return torch.optim.SGD(network.parameters(), lr, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY, fused=True)


def images_at_once(network: nn.Module, examples: LabelledImages, batch: int) -> int:
    """How many of `batch` images go through the network together.

    On a CPU only as many as keep a layer's activations in its cache, unless BatchNorm joins them. A module of the
    user's own may join the images of a batch in any way while it is trained.
    """
    if examples.images.device.type != "cpu":
        return batch
    if not isinstance(network, Network):
        return batch if network.training else min(batch, _OWN_AT_ONCE)
    if network.uses_batch_statistics:
        return batch
    channels, height, width = examples.images.shape[1:]
    return min(batch, images_in_cache(network, (channels, height, width), torch.float32))
