"""How near a step must come to the public loop with equal draws, which is `bench.baselines.public_step.public_run`."""

import torch
from torch import Tensor

from bench.baselines.public_step import public_run
from fastdm.condensation.settings import Settings
from fastdm.data.pool import Dataset

BF16_BOUND = 0.2
"""How far, in norm and of its own length, one change of the images in bfloat16 may be from that in float32.

Normalised activations have unit variance and, by rounded operands and sums, errors of up to 2^-8. So 2 · 2^-8 · φ(0) =
0.3 % of them come to the other side of a ReLU, and a gradient entry that is there instead of not is wrong by itself: in
three layers √(3 · 0.003) = 0.1 of the gradient's norm. Twice that is allowed. Whether it matters is a question of
accuracy, which `python -m bench.accuracy --precisions fp32 bf16` answers.
"""


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
