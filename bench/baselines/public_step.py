"""Distribution matching, transcribed literally from the paper and the public code's description.

The baseline of the benchmarks, with its own draws, and the oracle of the tests, with the package's draws: one class
after the other, one transformation after the other, plain PyTorch in the dtype of its input.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise

import torch
from torch import Tensor, nn

from bench.baselines import public_augment
from fastdm import Settings
from fastdm.augmentation import Strategy
from fastdm.data import Dataset, Pool
from fastdm.kernels import draw, table
from fastdm.networks.architectures import build_network
from fastdm.networks.model import initialise
from fastdm.synthetic.initial import initial_images

CPU = torch.device("cpu")


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


def iteration(
    network: ConvNet,
    real: Iterable[Tensor],
    synthetic: Tensor,
    ipc: int,
    optimiser: torch.optim.Optimizer,
    augment: Callable[[Tensor, int], Tensor],
) -> float:
    """One iteration of the public loop; changes `synthetic` and returns the summed loss.

    real: a batch of normalised images for each class; augment(images, class) applies the class's transformation.
    """
    network.train()
    for parameter in network.parameters():
        parameter.requires_grad_(False)
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
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    return loss.item()


class PublicStep:
    """The public loop with its own draws: a new network, and one class after the other.

    Like the public code, it holds the real images normalised in float32 on the device.
    """

    def __init__(self, dataset: Dataset, settings: Settings, device: torch.device) -> None:
        self._dataset, self._device = dataset, device
        self._settings = settings.resolve(dataset, device)
        mean, std = (torch.tensor(v, device=device).view(-1, 1, 1) for v in (dataset.mean, dataset.std))
        pool = dataset.train.images
        self._real = torch.empty(pool.shape, device=device)
        for part, into in zip(pool.split(4096), self._real.split(4096), strict=True):
            into.copy_((part.to(device) / 255 - mean) / std)
        self.images = initial_images(
            dataset, settings.ipc, settings.seed, init=settings.init, device=device
        ).requires_grad_()
        self._optimiser = torch.optim.SGD([self.images], lr=1.0, momentum=0.5)

    def __call__(self, number: int) -> float:
        classes, settings = self._dataset.num_classes, self._settings
        param = public_augment.Param(settings.aug_mode)

        def augment(images: Tensor, c: int) -> Tensor:
            return public_augment.diff_augment(images, settings.strategy or "none", number * classes + c, param)

        network = ConvNet(self._dataset, settings).to(self._device)
        return iteration(network, self._batches(), self.images, settings.ipc, self._optimiser, augment) / classes

    def _batches(self) -> Iterator[Tensor]:
        """A fresh random batch of each class, drawn when the loop comes to it."""
        for first, last in pairwise(self._dataset.train.class_offsets.tolist()):
            index = first + torch.randperm(last - first)[: self._settings.batch_real]
            yield self._real[index.to(self._device)]


# --- the oracle ------------------------------------------------------------------------------------------------------


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
    differs = row != table.identity(1)[0]

    def values(*columns: int, dtype: torch.dtype = x.dtype) -> list[Tensor] | None:
        """A value per image for each column, or None where all of them are the identity's."""
        if not differs[list(columns)].any():
            return None
        return [row[column].to(dtype).expand(len(x)) for column in columns]

    if color := values(table.BRIGHTNESS, table.SATURATION, table.CONTRAST):
        x = public_augment.brightness(x, color[0])
        x = public_augment.contrast(public_augment.saturation(x, color[1]), color[2])
    if shift := values(table.SHIFT_ROWS, table.SHIFT_COLS, dtype=torch.int64):
        x = public_augment.crop(x, *shift)
    top, bottom, left, right = row[table.CUTOUT_TOP : table.CUTOUT_RIGHT + 1].int().tolist()
    if bottom >= top and right >= left:
        mask = torch.ones(x.shape[2:], dtype=x.dtype)
        mask[top : bottom + 1, left : right + 1] = 0
        x = x * mask
    if differs[table.FLIP]:
        x = x.flip(3)
    if factors := values(table.SCALE_X, table.SCALE_Y):
        x = public_augment.scale(x, *factors)
    if differs[table.ROTATE_SIN] and (turn := values(table.ROTATE_COS, table.ROTATE_SIN)):
        x = public_augment.rotate(x, *turn)
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
    oracle = ConvNet(dataset, settings).to(dtype)
    ours, theirs = ([part for part in whole.modules() if isinstance(part, nn.Conv2d)] for whole in (network, oracle))

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
        losses.append(iteration(oracle, real, images, settings.ipc, optimiser, augment) / classes)
    return images.detach(), losses
