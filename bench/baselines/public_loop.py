"""Distribution matching and its augmentation, transcribed literally from the paper and the public code's description.

This is the oracle of the tests and the baseline of the benchmarks: one class after the other, one transformation after
the other, plain PyTorch in the dtype of its input. It shares no code with the package.
"""

import math
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# --- the transformations: images [N, C, H, W] and one value per image, [N] -------------------------------------------


def brightness(x: Tensor, b: Tensor) -> Tensor:
    return x + b.view(-1, 1, 1, 1)


def saturation(x: Tensor, s: Tensor) -> Tensor:
    mean = x.mean(dim=1, keepdim=True)
    return (x - mean) * s.view(-1, 1, 1, 1) + mean


def contrast(x: Tensor, k: Tensor) -> Tensor:
    mean = x.mean(dim=(1, 2, 3), keepdim=True)
    return (x - mean) * k.view(-1, 1, 1, 1) + mean


def crop(x: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
    """out[i, j] = x[i + rows, j + cols], zero outside."""
    n, _, height, width = x.shape
    batch, i, j = torch.meshgrid(
        torch.arange(n, device=x.device),
        torch.arange(height, device=x.device),
        torch.arange(width, device=x.device),
        indexing="ij",
    )
    i = (i + rows.view(-1, 1, 1) + 1).clamp(0, height + 1)
    j = (j + cols.view(-1, 1, 1) + 1).clamp(0, width + 1)
    padded = F.pad(x, [1, 1, 1, 1])
    return padded.permute(0, 2, 3, 1)[batch, i, j].permute(0, 3, 1, 2)


def cutout(x: Tensor, rows: Tensor, cols: Tensor, ratio: float = 0.5) -> Tensor:
    """A hole of zeros whose every index is clamped into the image; rows, cols: its offsets."""
    n, _, height, width = x.shape
    hole_height, hole_width = int(height * ratio + 0.5), int(width * ratio + 0.5)
    batch, i, j = torch.meshgrid(
        torch.arange(n, device=x.device),
        torch.arange(hole_height, device=x.device),
        torch.arange(hole_width, device=x.device),
        indexing="ij",
    )
    i = (i + rows.view(-1, 1, 1) - hole_height // 2).clamp(0, height - 1)
    j = (j + cols.view(-1, 1, 1) - hole_width // 2).clamp(0, width - 1)
    mask = torch.ones(n, height, width, dtype=x.dtype, device=x.device)
    mask[batch, i, j] = 0
    return x * mask.unsqueeze(1)


def flip(x: Tensor, u: Tensor, probability: float = 0.5) -> Tensor:
    return torch.where(u.view(-1, 1, 1, 1) < probability, x.flip(3), x)


def affine(x: Tensor, theta: list[list[float]]) -> Tensor:
    matrices = torch.tensor(theta, dtype=torch.float32).view(-1, 2, 3).to(x.device, x.dtype)
    grid = F.affine_grid(matrices, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def scale(x: Tensor, sx: Tensor, sy: Tensor) -> Tensor:
    return affine(x, [[a, 0, 0, 0, b, 0] for a, b in zip(sx.tolist(), sy.tolist(), strict=True)])


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return affine(x, [[c, -s, 0, s, c, 0] for c, s in zip(cos.tolist(), sin.tolist(), strict=True)])


# --- DiffAugment with the public code's draws ------------------------------------------------------------------------


def diff_augment(x: Tensor, strategy: str, seed: int, mode: str = "S", state: dict[str, int] | None = None) -> Tensor:
    """The public call with its default strengths: the same transformation of `x` for the same seed.

    state["latestseed"] receives the seed that the next draw would use.
    """
    state = {} if state is None else state
    state["latestseed"] = seed

    def reseed() -> None:
        if state["latestseed"] != -1:
            torch.random.manual_seed(state["latestseed"])
            state["latestseed"] += 1

    def siamese(draw: Callable[[], Tensor]) -> Tensor:
        """The first image's value for all, if a seed was given."""
        reseed()
        values = draw()
        return values if seed == -1 else values[:1].expand(len(values))

    families = strategy.split("_")
    if mode == "S":
        reseed()
        families = [families[int(torch.randint(0, len(families), size=(1,)).item())]]
    for family in families:
        x = _transform(family, x, siamese)
    return x


def _transform(family: str, x: Tensor, siamese: Callable[[Callable[[], Tensor]], Tensor]) -> Tensor:
    """One family, whose values `siamese` draws."""
    n, _, height, width = x.shape

    def on_device() -> Tensor:
        return siamese(lambda: torch.rand(n, dtype=x.dtype, device=x.device))

    def on_cpu() -> Tensor:
        return siamese(lambda: torch.rand(n))

    def integers(low: int, high: int) -> Tensor:
        return siamese(lambda: torch.randint(low, high, size=[n], device=x.device))

    if family == "color":
        x = brightness(x, on_device() - 0.5)
        x = saturation(x, on_device() * 2.0)
        return contrast(x, on_device() + 0.5)
    if family == "crop":
        reach = [int(size * 0.125 + 0.5) for size in (height, width)]
        rows = integers(-reach[0], reach[0] + 1)
        return crop(x, rows, integers(-reach[1], reach[1] + 1))
    if family == "cutout":
        hole = [int(size * 0.5 + 0.5) for size in (height, width)]
        rows = integers(0, height + (1 - hole[0] % 2))
        return cutout(x, rows, integers(0, width + (1 - hole[1] % 2)))
    if family == "flip":
        return flip(x, on_device())
    if family == "scale":
        sx = on_cpu() * (1.2 - 1 / 1.2) + 1 / 1.2
        return scale(x, sx, on_cpu() * (1.2 - 1 / 1.2) + 1 / 1.2)
    if family == "rotate":
        angle = (on_cpu() - 0.5) * 2 * 15.0 / 180 * math.pi
        return rotate(x, angle.cos(), angle.sin())
    raise ValueError(family)


# --- the network and the loop ----------------------------------------------------------------------------------------


class ConvNet(nn.Module):
    """The paper's ConvNet in torch modules only; `norm` is "instance" or "batch"."""

    def __init__(
        self, channels: int, classes: int, size: int, width: int = 128, depth: int = 3, norm: str = "instance"
    ):
        super().__init__()
        layers: list[nn.Module] = []
        for level in range(depth):
            padding = 3 if channels == 1 and level == 0 else 1
            layers.append(nn.Conv2d(channels if level == 0 else width, width, 3, padding=padding))
            layers.append(nn.GroupNorm(width, width, affine=True) if norm == "instance" else nn.BatchNorm2d(width))
            layers += [nn.ReLU(inplace=True), nn.AvgPool2d(2, 2)]
            size = (size + 2 * padding - 2) // 2
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(width * size * size, classes)

    def embed(self, x: Tensor) -> Tensor:
        features: Tensor = self.features(x)
        return features.flatten(1)


def iteration(
    network: ConvNet,
    real: Iterable[Tensor],
    synthetic: Tensor,
    ipc: int,
    optimiser: torch.optim.Optimizer,
    augment: Callable[[Tensor, int], Tensor],
    joint: bool = False,
) -> float:
    """One iteration of the public loop; changes `synthetic` and returns the summed loss.

    real: a batch of normalised images for each class; augment(images, class) applies the class's transformation;
    joint: one forward for all classes, as the public code does for networks with BatchNorm.
    """
    network.train()
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    loss = torch.tensor(0.0, dtype=synthetic.dtype, device=synthetic.device)
    real_all, synthetic_all = [], []
    for c, images in enumerate(real):
        images = augment(images, c)
        learnt = augment(synthetic[c * ipc : (c + 1) * ipc], c)
        if joint:
            real_all.append(images)
            synthetic_all.append(learnt)
        else:
            output_real = network.embed(images).detach()
            output_synthetic = network.embed(learnt)
            loss = loss + ((output_real.mean(dim=0) - output_synthetic.mean(dim=0)) ** 2).sum()
    if joint:
        output_real = (
            network.embed(torch.cat(real_all)).detach().view(len(real_all), -1, network.classifier.in_features)
        )
        output_synthetic = network.embed(torch.cat(synthetic_all)).view(len(real_all), ipc, -1)
        loss = loss + ((output_real.mean(dim=1) - output_synthetic.mean(dim=1)) ** 2).sum()
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    return loss.item()
