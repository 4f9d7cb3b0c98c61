"""See how good a condensed set is for an architecture of your own: the paper's evaluation, written out.

python -m examples.own_architecture [SET]

`fastdm.evaluate(synthetic, dataset, networks=[function])` does the same in one call.
"""

import sys
from collections.abc import Callable

import torch
from torch import nn
from torch.utils.data import DataLoader

import fastdm

STRATEGY = "color_crop_cutout_scale_rotate"
"""Digits are not flipped."""


class Residual(nn.Module):
    """Stands for any network of yours."""

    def __init__(self, channels: int, classes: int, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, width, 3, padding=1)
        self.body = nn.Sequential(nn.GroupNorm(4, width), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1))
        self.head = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16 * width, classes))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        z = self.stem(images)
        return torch.as_tensor(self.head(z + self.body(z)))


def train(network: nn.Module, synthetic: fastdm.SyntheticSet, epochs: int, lr: float = 0.01) -> None:
    """SGD with momentum and weight decay, one drop of the learning rate, each image augmented by itself."""
    loader = DataLoader(synthetic.as_dataset(), batch_size=256, shuffle=True)
    optimiser = torch.optim.SGD(network.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimiser, [epochs // 2 + 1])
    network.train()
    for _ in range(epochs):
        for images, labels in loader:
            augmented = fastdm.DiffAugment(images, STRATEGY, param=fastdm.ParamDiffAug())
            optimiser.zero_grad()
            nn.functional.cross_entropy(network(augmented), labels).backward()
            optimiser.step()
        schedule.step()


@torch.inference_mode()
def accuracy(network: nn.Module, dataset_name: str, synthetic: fastdm.SyntheticSet) -> float:
    test = fastdm.open_dataset(dataset_name).test
    assert test is not None
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (synthetic.mean, synthetic.std))
    network.eval()
    return float((network((test.images / 255 - mean) / std).argmax(1) == test.labels).float().mean())


def main(
    path: str | None = None, make: Callable[[], nn.Module] | None = None, networks: int = 3, epochs: int = 300
) -> float:
    """Train fresh networks on the set of digits in the file, by default on random ones; returns the mean accuracy."""
    synthetic = fastdm.random_selection("digits", ipc=10) if path is None else fastdm.SyntheticSet.load(path)
    make = make or (lambda: Residual(synthetic.images.shape[1], synthetic.num_classes))
    found = []
    for number in range(networks):
        torch.manual_seed(number)
        network = make()
        train(network, synthetic, epochs)
        found.append(accuracy(network, synthetic.dataset, synthetic))
    mean = sum(found) / networks
    print(f"{networks} networks: {100 * mean:.1f} % of the test images, {', '.join(f'{100 * a:.1f}' for a in found)}")
    return mean


if __name__ == "__main__":
    main(*sys.argv[1:2])
