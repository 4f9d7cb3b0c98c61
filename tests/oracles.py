"""The public loop with fastdm's draws: what `Step` must equal."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from bench import public_loop
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
accuracy, which bench/precision.py answers.
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
    ours = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    joint = any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    width, norm = ours[0].out_channels, "batch" if joint else "instance"
    oracle = public_loop.ConvNet(channels, classes, size[0], width=width, depth=len(ours), norm=norm).to(dtype)
    theirs = [module for module in oracle.modules() if isinstance(module, nn.Conv2d)]

    images = initial_images(dataset, settings.ipc, settings.seed).to(image_dtype).requires_grad_()
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
