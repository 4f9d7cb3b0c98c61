"""What tests compare with: the public loop with the package's draws, and how near a step must come to it."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from bench.baselines import public_augment
from bench.baselines.public_step import ConvNet, summed_loss
from fastdm.augmentation import Strategy
from fastdm.condensation.settings import Settings
from fastdm.data.pool import Dataset, Pool
from fastdm.kernels import draw, table
from fastdm.networks.architectures import build_network
from fastdm.networks.model import initialise
from fastdm.synthetic.initial import initial_images

CPU = torch.device("cpu")

BF16_BOUND = 0.2
"""How far, in norm and of its own length, one change of the images in bfloat16 may be from that in float32.

Normalised activations have unit variance and, by rounded operands and sums, errors of up to 2^-8. So 2 · 2^-8 · φ(0) =
0.3 % of them come to the other side of a ReLU, and a gradient entry that is there instead of not is wrong by itself: in
three layers √(3 · 0.003) = 0.1 of the gradient's norm. Twice that is allowed. Whether it matters is a question of
accuracy, which `python -m bench.accuracy --precisions fp32 bf16` answers.
"""


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
        loss = summed_loss(oracle, real, images, settings.ipc, augment)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item() / classes)
    return images.detach(), losses


def clear_classes(
    dataset: Dataset, settings: Settings, steps: int, margin: float
) -> tuple[Tensor, list[float], Tensor]:
    """The public loop in float64, and the classes, bool [classes], of whose synthetic images no activation comes nearer
    to 0 than `margin` in any iteration.

    Rounding is all that the others' runs differ by, unless it takes an activation to the other side of a ReLU, where
    its gradient is wrong by itself. For networks with InstanceNorm, of one class at a time.
    """
    nearest: list[Tensor] = []
    images, losses = public_run(dataset, settings, steps, torch.float64, watch=lambda z: nearest.append(z.abs().min()))
    clear = torch.stack(nearest).view(steps, dataset.num_classes, -1).amin((0, 2)) > margin
    return images, losses, clear
