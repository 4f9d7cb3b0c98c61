"""Test networks on labelled images, in one pass."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastdm.evaluation.training import LabelledImages, images_at_once
from fastdm.networks.model import Network

TOP = 5
_AT_ONCE = 1024  # images that go through a network together
_MIXED = 256  # the same where it takes their statistics: a batch of the protocol "dm"


@dataclass(frozen=True)
class Answers:
    """What a network made of the test images.

    confusion: int64 [classes, classes] on the CPU, the number of images of the class of the row that were taken for the
    class of the column; top5: the share of images whose class is among the five most likely ones.
    """

    confusion: Tensor
    top5: float

    @property
    def accuracy(self) -> float:
        """The share of images that are classified rightly, in [0, 1]."""
        return int(self.confusion.trace()) / int(self.confusion.sum())


def classify(network: nn.Module, examples: LabelledImages, dtype: torch.dtype) -> Answers:
    """Classify the examples, with the statistics of training in BatchNorm; the network is in eval mode afterwards.

    dtype: of the forward pass. The host waits for the device once, at the end.
    """
    return classify_all([network], examples, dtype)[0]


@torch.inference_mode()
def classify_all(networks: Sequence[nn.Module], examples: LabelledImages, dtype: torch.dtype) -> list[Answers]:
    """`classify` by each of the networks, in one pass over the examples: every batch is prepared once for all."""
    counts = [_Counts(network.eval(), examples) for network in networks]
    for index in rows_together(networks, examples, _AT_ONCE):
        images, labels = examples.batch(index), examples.labels[index]
        for each in counts:
            each.add(images, labels, dtype)
    return [each.answers() for each in counts]


def rows_together(networks: Sequence[nn.Module], examples: LabelledImages, most: int) -> Sequence[Tensor]:
    """The rows of the examples, at most `most` at a time as suits the device, for networks in eval mode.

    In their order, unless a network has BatchNorm without running statistics (`affine=False`): then mixed at random,
    always in the same way, and in even parts, since statistics of a single class would take away what tells it apart.
    """
    rows = torch.arange(len(examples), device=examples.images.device)
    parts: Sequence[Tensor]
    if any(isinstance(network, Network) and network.uses_batch_statistics for network in networks):
        order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(0)).to(rows.device)
        parts = order.tensor_split(-(-len(examples) // min(most, _MIXED)))
    else:
        parts = torch.split(rows, min(images_at_once(network, examples, most) for network in networks))
    return parts


class _Counts:
    """What one network makes of the examples, counted on their device."""

    def __init__(self, network: nn.Module, examples: LabelledImages) -> None:
        self._network, self._examples = network, len(examples)
        self._confusion: Tensor | None = None
        self._among = torch.zeros((), dtype=torch.int64, device=examples.images.device)
        self._classes = 0

    def add(self, images: Tensor, labels: Tensor, dtype: torch.dtype) -> None:
        with torch.autocast(images.device.type, dtype, enabled=dtype != torch.float32):
            logits = self._network(images)
        if self._confusion is None:
            self._classes = logits.shape[1]
            self._confusion = torch.zeros(self._classes**2, dtype=torch.int64, device=images.device)
        self._confusion.index_add_(0, labels * self._classes + logits.argmax(1), torch.ones_like(labels))
        self._among += (logits.topk(min(TOP, self._classes)).indices == labels[:, None]).sum()

    def answers(self) -> Answers:
        assert self._confusion is not None
        confusion = self._confusion.view(self._classes, self._classes).cpu()
        return Answers(confusion, self._among.item() / self._examples)


def accuracy(network: nn.Module, examples: LabelledImages, dtype: torch.dtype) -> float:
    """The share of the examples that `network` classifies rightly: see `classify`."""
    return classify(network, examples, dtype).accuracy
