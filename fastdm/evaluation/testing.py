"""Test a network on labelled images, in one pass."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastdm.evaluation.training import LabelledImages, images_at_once

TOP = 5
_AT_ONCE = 1024  # images that go through a network together


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


@torch.inference_mode()
def classify(network: nn.Module, examples: LabelledImages, dtype: torch.dtype) -> Answers:
    """Classify the examples, with the statistics of training in BatchNorm; the network is in eval mode afterwards.

    dtype: of the forward pass. The host waits for the device once, at the end.
    """
    network.eval()
    device = examples.images.device
    counts = torch.zeros(0, dtype=torch.int64, device=device)
    among = torch.zeros((), dtype=torch.int64, device=device)
    rows = torch.arange(len(examples), device=device)
    classes = 0
    for index in torch.split(rows, images_at_once(network, examples, _AT_ONCE)):
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            logits = network(examples.batch(index))
        labels = examples.labels[index]
        if classes == 0:
            classes = logits.shape[1]
            counts = torch.zeros(classes**2, dtype=torch.int64, device=device)
        counts.index_add_(0, labels * classes + logits.argmax(1), torch.ones_like(labels))
        among += (logits.topk(min(TOP, classes)).indices == labels[:, None]).sum()
    return Answers(counts.view(classes, classes).cpu(), among.item() / len(examples))


def accuracy(network: nn.Module, examples: LabelledImages, dtype: torch.dtype) -> float:
    """The share of the examples that `network` classifies rightly: see `classify`."""
    return classify(network, examples, dtype).accuracy
