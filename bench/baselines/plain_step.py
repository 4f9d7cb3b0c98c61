"""The iteration in plain PyTorch with all classes in one batch: what one writes for torch.compile."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdm import Settings
from fastdm.augmentation import Strategy
from fastdm.data import Dataset
from fastdm.kernels import draw
from fastdm.kernels.augmentation import reference
from fastdm.networks.architectures import build_network
from fastdm.networks.model import initialise
from fastdm.synthetic.initial import initial_images
from fastdm.system.cuda_graph import captured


class PlainStep:
    """Draws what the package's step draws, and none of the package's kernels computes images, features or the loss."""

    def __init__(
        self, dataset: Dataset, settings: Settings, device: torch.device, dtype: torch.dtype, compiled: bool
    ) -> None:
        settings = settings.resolve(dataset, device)
        assert settings.network is not None
        self.images = initial_images(dataset, settings.ipc, settings.seed, init=settings.init, device=device)
        self._velocity = torch.zeros_like(self.images)
        self._settings, self._dtype = settings, dtype
        self._strategy = Strategy.parse(settings.strategy)
        classes, ipc = dataset.num_classes, settings.ipc
        self._key = torch.tensor([settings.seed, 0], device=device)
        self._classes = torch.arange(classes, device=device)
        self._offsets = dataset.train.class_offsets.to(device)
        self._pool = dataset.train.images.to(device)
        self._mean, self._std = (torch.tensor(v, device=device) for v in (dataset.mean, dataset.std))
        self._real_group = self._classes.repeat_interleave(settings.batch_real)
        self._synthetic_group = self._classes.repeat_interleave(ipc)
        self._network = build_network(
            settings.network,
            channels=dataset.image_shape[0],
            num_classes=classes,
            image_size=dataset.image_shape[1:],
            frozen=True,
            device=device,
            dtype=dtype,
        )

        def loss(weights: list[Tensor], real: Tensor, synthetic: Tensor) -> Tensor:
            with torch.no_grad():
                real_means = _embed(weights, real).view(classes, -1, self._network.num_features).float().mean(1)
            means = _embed(weights, synthetic).view(classes, ipc, -1).float().mean(1)
            return (real_means - means).square().sum()

        on_gpu = device.type == "cuda"
        # On a CPU the reference picks the images of each family, which torch.compile cannot follow.
        self._dsa = torch.compile(reference.dsa, dynamic=False) if compiled and on_gpu else reference.dsa
        self._loss = torch.compile(loss, dynamic=False) if compiled else loss
        self._run = self._iterate

    def __call__(self, iteration: int) -> Tensor:
        self._key[1:].fill_(iteration)  # An assignment to one element would wait for the device.
        return self._run()

    def capture(self) -> None:
        """Record the iteration as a CUDA graph."""
        self._run = captured(self._iterate, [self.images, self._velocity])

    def _iterate(self) -> Tensor:
        initialise(self._network, self._key)
        weights = [layer.weight for layer in self._network.modules() if isinstance(layer, nn.Conv2d)]
        index = draw(self._key, self._offsets, self._settings.batch_real).flatten()
        (table,) = self._strategy.draw(self._key, self._classes, (self.images.shape[2], self.images.shape[3]))
        real = self._dsa(self._pool, table, self._real_group, index, self._mean, self._std, self._dtype, True)
        self.images.requires_grad_()
        learnt = self._dsa(self.images, table, self._synthetic_group, None, None, None, self._dtype, True)
        loss = self._loss(weights, real, learnt)
        (gradient,) = torch.autograd.grad(loss, self.images)
        self.images.requires_grad_(False)
        self._velocity.mul_(self._settings.momentum).add_(gradient)
        self.images.sub_(self._velocity, alpha=self._settings.lr_img or 1.0)
        return loss.detach() / len(self._classes)


def layers(x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
    """InstanceNorm, ReLU and AvgPool as the public network has them."""
    return F.avg_pool2d(F.relu(F.group_norm(x, x.shape[1], scale, shift)), 2)


def _embed(weights: list[Tensor], x: Tensor) -> Tensor:
    for weight in weights:
        x = layers(F.conv2d(x, weight, padding=3 if weight.shape[1] == 1 else 1))  # The paper pads grey images more.
    return x.flatten(1)
