"""Distribution matching, transcribed literally from the paper and the public code's description: one class after the
other, one transformation after the other, plain PyTorch in the dtype of its input.

The baseline of the benchmarks; the tests run the same with the package's draws (`tests.oracles.public_run`).
"""

import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from bench.baselines import public_augment
from fastdm import Settings
from fastdm.data import Dataset
from fastdm.synthetic.initial import initial_images


class ConvNet(nn.Module):
    """The paper's ConvNet in torch modules only, as resolved settings name it."""

    def __init__(self, dataset: Dataset, settings: Settings) -> None:
        super().__init__()
        found = re.fullmatch(r"ConvNet(?:W(\d+)|D(\d+)|(BN))?", settings.network or "")
        assert found is not None
        channels, size, _ = dataset.image_shape
        width, depth = int(found[1] or 128), int(found[2] or 3)
        self.joint = found[3] is not None
        """Whether classes share statistics, for which the public code runs all of them in one forward."""
        layers: list[nn.Module] = []
        for level in range(depth):
            padding = 3 if channels == 1 and level == 0 else 1
            layers.append(nn.Conv2d(channels if level == 0 else width, width, 3, padding=padding))
            layers.append(nn.BatchNorm2d(width) if self.joint else nn.GroupNorm(width, width, affine=True))
            layers += [nn.ReLU(inplace=True), nn.AvgPool2d(2, 2)]
            size = (size + 2 * padding - 2) // 2
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(width * size * size, dataset.num_classes)

    def embed(self, x: Tensor) -> Tensor:
        features: Tensor = self.features(x)
        return features.flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.embed(x))
        return logits


def summed_loss(
    network: ConvNet, real: Iterable[Tensor], synthetic: Tensor, ipc: int, augment: Callable[[Tensor, int], Tensor]
) -> Tensor:
    """The loss of one iteration of the public loop, summed over the classes.

    real: a batch of normalised images for each class; augment(images, class) applies the class's transformation.
    """
    network.train().requires_grad_(False)
    loss = torch.tensor(0.0, dtype=synthetic.dtype, device=synthetic.device)
    real_all, synthetic_all = [], []
    for c, images in enumerate(real):
        images = augment(images, c)
        learnt = augment(synthetic[c * ipc : (c + 1) * ipc], c)
        if network.joint:
            real_all.append(images)
            synthetic_all.append(learnt)
        else:
            output_real = network.embed(images).detach()
            output_synthetic = network.embed(learnt)
            loss = loss + ((output_real.mean(dim=0) - output_synthetic.mean(dim=0)) ** 2).sum()
    if network.joint:
        classes, features = len(real_all), network.classifier.in_features
        output_real = network.embed(torch.cat(real_all)).detach().view(classes, -1, features)
        output_synthetic = network.embed(torch.cat(synthetic_all)).view(classes, ipc, features)
        loss = loss + ((output_real.mean(dim=1) - output_synthetic.mean(dim=1)) ** 2).sum()
    return loss


class PublicStep:
    """The public loop with its own draws: a new network, and one class after the other.

    Like the public code, it holds the real images normalised in float32 on the device.
    """

    def __init__(self, dataset: Dataset, settings: Settings, device: torch.device, lr_img: float = 1.0) -> None:
        self._dataset, self._device = dataset, device
        self._settings = settings.resolve(dataset, device)
        self._param = public_augment.Param(self._settings.aug_mode)
        mean, std = (torch.tensor(v, device=device).view(-1, 1, 1) for v in (dataset.mean, dataset.std))
        pool = dataset.train.images
        self._real = torch.empty(pool.shape, device=device)
        for part, into in zip(pool.split(4096), self._real.split(4096), strict=True):
            into.copy_((part.to(device) / 255 - mean) / std)
        initial = initial_images(dataset, settings.ipc, settings.seed, init=settings.init, device=device)
        self.images = initial.requires_grad_()
        self._optimiser = torch.optim.SGD([self.images], lr=lr_img, momentum=0.5)

    def __call__(self, number: int) -> float:
        network = ConvNet(self._dataset, self._settings).to(self._device)
        augment = partial(self._augment, number)
        return self._learn(summed_loss(network, self._batches(), self.images, self._settings.ipc, augment))

    def _learn(self, loss: Tensor) -> float:
        """Change the images by a loss that is summed over the classes; returns their mean."""
        self._optimiser.zero_grad()
        loss.backward()
        self._optimiser.step()
        return loss.item() / self._dataset.num_classes

    def _batches(self) -> Iterator[Tensor]:
        """A fresh random batch of each class, drawn when the loop comes to it."""
        for first, last in pairwise(self._dataset.train.class_offsets.tolist()):
            index = first + torch.randperm(last - first)[: self._settings.batch_real]
            yield self._real[index.to(self._device)]

    def _augment(self, number: int, images: Tensor, c: int) -> Tensor:
        """As all images of the class in this iteration."""
        seed = number * self._dataset.num_classes + c
        return public_augment.diff_augment(images, self._settings.strategy or "none", seed, self._param)
