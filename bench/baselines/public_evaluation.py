"""Training and testing one network as the public code does it, with our `DiffAugment`."""

from argparse import Namespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import fastdm
from fastdm import data
from fastdm.augmentation import DSA_STRATEGY


class PublicImages(Dataset[tuple[Tensor, int]]):
    """Random uint8 images, converted and normalised when one is read, as torchvision's data sets are.

    like: has the classes, shape, mean and deviation.
    """

    def __init__(self, per_class: int, like: data.Dataset, seed: int = 0) -> None:
        channels, height, width = like.image_shape
        size = (like.num_classes * per_class, height, width, channels)
        self.images = np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)
        self.labels = np.arange(len(self.images)) % like.num_classes
        self._mean, self._std = (torch.tensor(values)[:, None, None] for values in (like.mean, like.std))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        pixels = torch.from_numpy(self.images[index]).permute(2, 0, 1).contiguous().float().div(255)
        return pixels.sub_(self._mean).div_(self._std), int(self.labels[index])


def public_arguments(epochs: int) -> Namespace:
    """The public code's settings of a training, as its functions take them."""
    param = fastdm.ParamDiffAug()
    dsa = {"dsa": True, "dsa_strategy": DSA_STRATEGY, "dsa_param": param}
    return Namespace(device="cpu", lr_net=0.01, epoch_eval_train=epochs, batch_train=256, **dsa)


def public_evaluate(net: nn.Module, images: Tensor, labels: Tensor, tests: DataLoader[Any], args: Any) -> float:
    """The test accuracy, as the public code trains and tests."""
    net.train()
    loader = DataLoader(TensorDataset(images, labels), args.batch_train, shuffle=True)
    optimizer = torch.optim.SGD(net.parameters(), args.lr_net, momentum=0.9, weight_decay=5e-4)
    for epoch in range(args.epoch_eval_train + 1):
        for batch, truth in loader:
            output = net(fastdm.DiffAugment(batch, args.dsa_strategy, param=args.dsa_param))
            loss = nn.functional.cross_entropy(output, truth)
            loss.item()
            np.argmax(output.detach().cpu().numpy(), axis=-1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if epoch == args.epoch_eval_train // 2 + 1:
            optimizer = torch.optim.SGD(net.parameters(), 0.1 * args.lr_net, momentum=0.9, weight_decay=5e-4)
    net.eval()
    found = [(int((net(x.to(images.device)).argmax(1).cpu() == truth).sum()), len(truth)) for x, truth in tests]
    return sum(right for right, _ in found) / sum(count for _, count in found)
