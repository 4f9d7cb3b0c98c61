"""The public loop on the package's data: with its own draws as a baseline, with the package's draws as the oracle."""

import re
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from bench.baselines import public_loop
from fastdm import Settings
from fastdm.augmentation import Strategy
from fastdm.data import Dataset, Pool
from fastdm.kernels import draw, table
from fastdm.networks.architectures import build_network
from fastdm.networks.model import initialise
from fastdm.synthetic.initial import initial_images

CPU = torch.device("cpu")


class PublicStep:
    """The public loop with its own draws: a new network, and one class after the other.

    Like the public code, it holds the real images normalised in float32 on the device.
    """

    def __init__(self, dataset: Dataset, settings: Settings, device: torch.device) -> None:
        self._settings = settings.resolve(dataset, device)
        self._device = device
        self._strategy = self._settings.strategy or "none"
        self._classes = dataset.num_classes
        self._network = partial(convnet, dataset, self._settings)
        mean, std = (torch.tensor(v, device=device).view(-1, 1, 1) for v in (dataset.mean, dataset.std))
        pool = dataset.train.images
        self._real = torch.empty(pool.shape, device=device)
        for part, into in zip(pool.split(4096), self._real.split(4096), strict=True):
            into.copy_((part.to(device) / 255 - mean) / std)
        self._offsets = dataset.train.class_offsets.tolist()
        self.images = initial_images(
            dataset, self._settings.ipc, self._settings.seed, init=self._settings.init, device=device
        ).requires_grad_()
        self._optimiser = torch.optim.SGD([self.images], lr=1.0, momentum=0.5)

    def __call__(self, iteration: int) -> float:
        def augment(images: Tensor, c: int) -> Tensor:
            seed = iteration * self._classes + c
            return public_loop.diff_augment(images, self._strategy, seed, self._settings.aug_mode)

        ipc = self._settings.ipc
        loss = public_loop.iteration(
            self._network().to(self._device), self._batches(), self.images, ipc, self._optimiser, augment
        )
        return loss / self._classes

    def _batches(self) -> Iterator[Tensor]:
        """A fresh random batch of each class, drawn when the loop comes to it."""
        for first, last in pairwise(self._offsets):
            index = first + torch.randperm(last - first)[: self._settings.batch_real]
            yield self._real[index.to(self._device)]


def convnet(dataset: Dataset, settings: Settings) -> public_loop.ConvNet:
    """The public form of the ConvNet that resolved settings name."""
    found = re.fullmatch(r"ConvNet(?:W(\d+)|D(\d+)|(BN))?", settings.network or "")
    assert found is not None
    channels, size, _ = dataset.image_shape
    norm = "batch" if found[3] else "instance"
    return public_loop.ConvNet(channels, dataset.num_classes, size, int(found[1] or 128), int(found[2] or 3), norm)


def random_dataset(sizes: list[int], shape: tuple[int, int, int] = (3, 16, 16), seed: int = 0) -> Dataset:
    """Smooth random pictures, different from class to class, so that nothing about them is degenerate."""
    generator = torch.Generator().manual_seed(seed)
    channels, height, width = shape
    coarse = torch.rand(sum(sizes), channels, 4, 4, generator=generator)
    offsets = torch.tensor([0, *sizes]).cumsum(0)
    tint = torch.repeat_interleave(torch.rand(len(sizes), channels, 1, 1, generator=generator), torch.tensor(sizes), 0)
    images = nn.functional.interpolate(coarse, (height, width), mode="bilinear") * 0.7 + tint * 0.3
    pool = Pool((images * 255).round().to(torch.uint8), offsets)
    names = tuple(f"class {c}" for c in range(len(sizes)))
    return Dataset("random", pool, None, names, (0.5,) * channels, (0.25,) * channels)


def apply_row(x: Tensor, row: Tensor) -> Tensor:
    """One row of the augmentation table, applied by the literal transformations; only those that are not identity."""
    value = row.to(x.dtype)
    identity = table.identity(1)[0]
    is_set = [bool(row[column] != identity[column]) for column in range(table.COLUMNS)]
    ones = torch.ones(len(x), dtype=x.dtype)
    if any(is_set[: table.CONTRAST + 1]):
        x = public_loop.brightness(x, ones * value[table.BRIGHTNESS])
        x = public_loop.saturation(x, ones * value[table.SATURATION])
        x = public_loop.contrast(x, ones * value[table.CONTRAST])
    if is_set[table.SHIFT_ROWS] or is_set[table.SHIFT_COLS]:
        shift = torch.ones(len(x), dtype=torch.int64)
        x = public_loop.crop(x, shift * int(row[table.SHIFT_ROWS]), shift * int(row[table.SHIFT_COLS]))
    top, bottom, left, right = row[table.CUTOUT_TOP : table.CUTOUT_RIGHT + 1].int().tolist()
    if bottom >= top and right >= left:
        mask = torch.ones(x.shape[2:], dtype=x.dtype)
        mask[top : bottom + 1, left : right + 1] = 0
        x = x * mask
    if is_set[table.FLIP]:
        x = x.flip(3)
    if is_set[table.SCALE_X] or is_set[table.SCALE_Y]:
        x = public_loop.scale(x, ones * value[table.SCALE_X], ones * value[table.SCALE_Y])
    if is_set[table.ROTATE_SIN]:
        x = public_loop.rotate(x, ones * value[table.ROTATE_COS], ones * value[table.ROTATE_SIN])
    return x


def public_run(
    dataset: Dataset,
    settings: Settings,
    steps: int,
    dtype: torch.dtype,
    *,
    image_dtype: torch.dtype | None = None,
    watch: Callable[[Tensor], None] = lambda z: None,
) -> tuple[Tensor, list[float]]:
    """The images and losses after `steps` iterations of the public loop, in `dtype`, with the draws that Step makes.

    image_dtype: that of the images, their momentum and their augmentation, if another than the network's; watch: is
    shown what every ReLU gets from synthetic images.
    """
    settings = settings.resolve(dataset, CPU)
    assert settings.network is not None
    image_dtype = image_dtype or dtype
    classes = dataset.num_classes
    channels, *size = dataset.image_shape
    network = build_network(
        settings.network, channels=channels, num_classes=classes, image_size=(size[0], size[1]), frozen=True
    )
    oracle = convnet(dataset, settings).to(dtype)
    ours, theirs = ([part for part in whole.modules() if isinstance(part, nn.Conv2d)] for whole in (network, oracle))
    joint = any(isinstance(module, nn.BatchNorm2d) for module in oracle.modules())

    images = initial_images(dataset, settings.ipc, settings.seed, init=settings.init).to(image_dtype).requires_grad_()
    optimiser = torch.optim.SGD([images], lr=1.0, momentum=0.5)
    mean, std = (torch.tensor(values, dtype=image_dtype).view(1, -1, 1, 1) for values in (dataset.mean, dataset.std))
    strategy = Strategy.parse(settings.strategy, settings.aug_mode)
    for module in oracle.modules():
        if isinstance(module, nn.ReLU):
            module.register_forward_pre_hook(lambda _, z: watch(z[0].detach()) if z[0].requires_grad else None)
    losses = []
    for step in range(steps):
        key = torch.tensor([settings.seed, step])
        initialise(network, key)
        for source, target in zip(ours, theirs, strict=True):
            target.weight.data.copy_(source.weight)
            assert target.bias is not None
            nn.init.zeros_(target.bias)
        index = draw(key, dataset.train.class_offsets, settings.batch_real)
        tables = strategy.draw(key, torch.arange(classes), (size[0], size[1]))

        def augment(x: Tensor, c: int, tables: list[Tensor] = tables) -> Tensor:
            for rows in tables:
                x = apply_row(x, rows[c])
            return x.to(dtype)

        real = [(dataset.train.images[rows].to(image_dtype) / 255 - mean) / std for rows in index]
        loss = public_loop.iteration(oracle, real, images, settings.ipc, optimiser, augment, joint=joint)
        losses.append(loss / classes)
    return images.detach(), losses
