"""What a training does to a batch: the augmentation of each protocol, and cutmix."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fastdm.augmentation import Strategy
from fastdm.evaluation.protocol import Protocol
from fastdm.kernels import table, uniform

CUTMIX_STREAM = 7  # the stream of `fastdm.kernels.uniform` that cutmix draws from
_ALWAYS, _ONE_OF = ("color", "flip"), ("crop", "scale", "rotate")


def draw_tables(protocol: Protocol, key: Tensor, rows: Tensor, size: tuple[int, int]) -> list[Tensor]:
    """The augmentation of a batch: tables of a row for every one of `rows`.

    dm: one family of the strategy for all. idc: color and flip, as far as the strategy has them, and one of crop, scale
    and rotate for all. The parameters are every image's own.
    """
    strategy = Strategy.parse(protocol.strategy)
    if protocol.name == "dm":
        return strategy.draw(key, rows, size, one_family=True)
    always, one_of = (
        Strategy(tuple(family for family in wanted if family in strategy.families), mode)  # type: ignore[arg-type]
        for wanted, mode in ((_ALWAYS, "M"), (_ONE_OF, "S"))
    )
    tables = [*always.draw(key, rows, size), *one_of.draw(key, rows, size, one_family=True)]
    if len(tables) < 2:
        return tables
    first, second = tables  # no column is set in both
    return [torch.where(second == table.identity(1, second.device), first, second)]


@dataclass(frozen=True)
class Mixture:
    """Cutmix of a batch (Yun et al., ICCV 2019): a box of every image is that of its partner.

    partner: int64 [N], the other image of each; rows, columns: (first, end) of the box, which all images share,
    int64 [1] each; share: of the image that is its own, float32 [1]. All on the device.
    """

    partner: Tensor
    rows: tuple[Tensor, Tensor]
    columns: tuple[Tensor, Tensor]
    share: Tensor

    def __call__(self, images: Tensor) -> Tensor:
        """The images [N, C, H, W] with the boxes of their partners."""
        height, width = images.shape[2:]
        y, x = torch.arange(height, device=images.device)[:, None], torch.arange(width, device=images.device)
        box = (y >= self.rows[0]) & (y < self.rows[1]) & (x >= self.columns[0]) & (x < self.columns[1])
        return torch.where(box, images[self.partner], images)


def draw_mixture(key: Tensor, rows: Tensor, size: tuple[int, int]) -> Mixture:
    """Draw a mixture for the images `rows` of size (height, width), as IDC does.

    Half of the batches are left as they are: their box is empty. λ ~ U(0, 1) is the share that the box leaves; its
    centre is uniform over the pixels; its half sides are ⌊side · √(1 − λ)⌋ // 2. What lies beyond the image is cut off,
    and the shares follow from what is left.
    """
    u = uniform(key, rows[:1], 4 + len(rows), CUTMIX_STREAM)[0]
    is_mixed = (u[:1] < 0.5).long()
    sides = []
    for place, side in zip((u[2:3], u[3:4]), size, strict=True):
        half = (side * (1 - u[1:2]).sqrt()).long() // 2 * is_mixed
        centre = (place * side).long().clamp_(max=side - 1)
        sides.append(((centre - half).clamp_(min=0), (centre + half).clamp_(max=side)))
    (top, bottom), (left, right) = sides
    share = 1 - (bottom - top) * (right - left) / (size[0] * size[1])
    return Mixture(u[4:].argsort(stable=True), (top, bottom), (left, right), share)
