"""Train one network on labelled images, and test it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from fastdm.augmentation import Strategy, augment
from fastdm.data.pool import Pool
from fastdm.evaluation.protocol import Protocol
from fastdm.kernels import uniform
from fastdm.networks.footprint import images_in_cache
from fastdm.networks.model import Network, initialise
from fastdm.synthetic.synthetic_set import SyntheticSet

MOMENTUM = 0.9
WEIGHT_DECAY = 5e-4
ORDER_STREAM = 5  # the stream of `fastdm.kernels.uniform` that shuffles the training images
_SEED_BIT = 1 << 62  # keeps the draws apart from those of a condensation with the same seed
_GPU_TEST_IMAGES = 1024  # that go through a network at once


@dataclass(frozen=True)
class LabelledImages:
    """Images with labels on a device; a uint8 pool stays one, and is normalised batch by batch.

    images: uint8 or normalised float32 [N, C, H, W]; labels: int64 [N]; mean, std: float32 [C], for uint8 only.
    """

    images: Tensor
    labels: Tensor
    mean: Tensor | None
    std: Tensor | None

    @classmethod
    def of(
        cls, images: SyntheticSet | Pool, mean: Sequence[float], std: Sequence[float], device: torch.device
    ) -> "LabelledImages":
        labels = images.labels.to(device)
        if isinstance(images, SyntheticSet):
            return cls(images.images.detach().to(device), labels, None, None)
        pixels = images.to(device).images
        normalisation = (torch.tensor(values, dtype=torch.float32, device=device) for values in (mean, std))
        return cls(pixels, labels, *normalisation)

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, index: Tensor, tables: Sequence[Tensor] = ()) -> Tensor:
        """Normalised images of the rows `index`, augmented by one row of each table per image."""
        return augment(self.images, tables, index=index, mean=self.mean, std=self.std, channels_last=True)


def train_network(
    network: Network,
    examples: LabelledImages,
    protocol: Protocol,
    number: int,
    dtype: torch.dtype,
    after_step: Callable[[], None] = lambda: None,
) -> None:
    """Initialise `network` as number `number` of the protocol's seed and train it by the protocol; see `evaluate`.

    dtype: of the forward pass; weights and gradients are float32. Nothing waits for the device.
    """
    device = examples.images.device
    key = torch.tensor([protocol.seed ^ _SEED_BIT, number * protocol.steps(len(examples))], device=device)
    initialise(network, key)
    network.train()
    size = (examples.images.shape[2], examples.images.shape[3])
    rows = torch.arange(min(protocol.batch_train, len(examples)), device=device)
    at_once = _images_at_once(network, examples, protocol.batch_train)

    strategy = Strategy.parse(protocol.strategy)
    optimizer = _sgd(network, protocol.lr_net)
    for epoch in range(protocol.epochs + 1):
        order = uniform(key, rows[:1], len(examples), ORDER_STREAM)[0].argsort(stable=True)
        for start in range(0, len(examples), protocol.batch_train):
            index = order[start : start + protocol.batch_train]
            tables = strategy.draw(key, rows[: len(index)], size, one_family=True)
            optimizer.zero_grad()
            for first in range(0, len(index), at_once):
                part = slice(first, first + at_once)
                images = examples.batch(index[part], [table[part] for table in tables])
                with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                    logits = network(images)
                loss = functional.cross_entropy(logits.float(), examples.labels[index[part]], reduction="sum")
                (loss / len(index)).backward()
            optimizer.step()
            key[1] += 1
            after_step()
        if epoch == protocol.epochs // 2 + 1:
            optimizer = _sgd(network, 0.1 * protocol.lr_net)


@torch.inference_mode()
def accuracy(network: Network, examples: LabelledImages, dtype: torch.dtype) -> float:
    """Share of the examples that `network` classifies rightly, with the statistics of training in BatchNorm."""
    network.eval()
    device = examples.images.device
    right = torch.zeros((), dtype=torch.int64, device=device)
    rows = torch.arange(len(examples), device=device)
    for index in torch.split(rows, _images_at_once(network, examples, _GPU_TEST_IMAGES)):
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            logits = network(examples.batch(index))
        right += (logits.argmax(1) == examples.labels[index]).sum()
    return right.item() / len(examples)


def _sgd(network: Network, lr: float) -> torch.optim.SGD:
    return torch.optim.SGD(network.parameters(), lr, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY, fused=True)


def _images_at_once(network: Network, examples: LabelledImages, batch: int) -> int:
    """`batch`; on a CPU only as many as keep a layer's activations in its cache, unless BatchNorm joins them."""
    if examples.images.device.type != "cpu" or network.uses_batch_statistics:
        return batch
    channels, height, width = examples.images.shape[1:]
    return min(batch, images_in_cache(network, (channels, height, width), torch.float32))
