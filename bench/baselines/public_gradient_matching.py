"""Gradient matching with Siamese augmentation (Zhao & Bilen, ICML 2021; Zhao, Mopuri & Bilen, ICLR 2021), transcribed
from the papers and the public code's description: what distribution matching was proposed to replace.

One iteration takes a new network. In each of its outer steps, the images of every class learn to give the network the
gradient that the class's real images give; between two outer steps, the network is trained on the images for some
epochs (the inner loop).
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from bench.baselines import public_augment
from bench.baselines.public_step import ConvNet, PublicStep
from fastdm import Settings
from fastdm.data import Dataset

ITERATIONS = 1000
BATCH_TRAIN = 256
LR_NET = 0.01
LR_IMG = 0.1


@dataclass(frozen=True)
class Loops:
    """outer: steps of the images per iteration. inner: epochs of the network between two of them."""

    outer: int
    inner: int

    @property
    def epochs(self) -> int:
        """Epochs per iteration: none follows the last outer step."""
        return (self.outer - 1) * self.inner


PUBLISHED = {1: Loops(1, 1), 10: Loops(10, 50), 50: Loops(50, 10)}
"""By images per class."""


def distance(ours: Iterable[Tensor], theirs: Iterable[Tensor]) -> Tensor:
    """Σ over layers and their output channels of 1 − the cosine between two gradients; weights only, no biases."""
    total = torch.zeros(())
    for one, other in zip(ours, theirs, strict=True):
        if one.dim() > 1:
            a, b = one.flatten(1), other.flatten(1)
            total = total + (1 - (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + 1e-6)).sum()
    return total


def matching_loss(network: ConvNet, real: Tensor, synthetic: Tensor, label: int) -> Tensor:
    """The distance of the gradients that real and synthetic images of one class give the network."""
    parameters = list(network.parameters())

    def gradients(images: Tensor, differentiable: bool) -> tuple[Tensor, ...]:
        labels = torch.full((len(images),), label, device=images.device)
        loss = nn.functional.cross_entropy(network.classifier(network.embed(images)), labels)
        return torch.autograd.grad(loss, parameters, create_graph=differentiable)

    target = gradients(real, False)
    return distance(gradients(synthetic, True), target)


class GradientMatching(PublicStep):
    """The two parts of an iteration, one class after the other as in the public code."""

    def __init__(self, dataset: Dataset, settings: Settings, device: torch.device) -> None:
        super().__init__(dataset, settings, device, LR_IMG)
        self._labels = torch.arange(dataset.num_classes, device=device).repeat_interleave(settings.ipc)
        self.network = ConvNet(dataset, self._settings).to(device)
        self._training = torch.optim.SGD(self.network.parameters(), lr=LR_NET)

    def __call__(self, number: int) -> float:
        """One outer step; changes the images and returns the distance per class."""
        self.network.train()
        ipc, loss = self._settings.ipc, torch.zeros((), device=self._device)
        for c, real in enumerate(self._batches()):
            learnt = self.images[c * ipc : (c + 1) * ipc]
            real, learnt = (self._augment(number, images, c) for images in (real, learnt))
            loss = loss + matching_loss(self.network, real, learnt, c)
        return self._learn(loss)

    def train(self) -> None:
        """One epoch of the inner loop; changes the network."""
        images, strategy = TensorDataset(self.images.detach().clone(), self._labels), self._settings.strategy or "none"
        for batch, labels in DataLoader(images, BATCH_TRAIN, shuffle=True):
            batch = public_augment.diff_augment(batch, strategy, -1, self._param)
            self._training.zero_grad()
            nn.functional.cross_entropy(self.network(batch), labels).backward()
            self._training.step()
