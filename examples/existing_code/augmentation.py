"""What an existing code base has: the public augmentation's call and parameters, reduced to flips and brightness."""

import torch
from torch import Tensor


class ParamDiffAug:
    def __init__(self) -> None:
        self.aug_mode = "S"
        self.brightness = 1.0
        self.Siamese = False


def DiffAugment(x: Tensor, strategy: str = "", seed: int = -1, param: ParamDiffAug | None = None) -> Tensor:
    """With a seed, the whole batch gets one transformation; without one, every image its own."""
    param = param or ParamDiffAug()
    if seed != -1:
        torch.manual_seed(seed)
    draws = torch.rand(2, 1 if seed != -1 else len(x), 1, 1, 1).expand(2, len(x), 1, 1, 1)
    if "flip" in strategy:
        x = torch.where(draws[0] < 0.5, x.flip(3), x)
    if "color" in strategy:
        x = x + (draws[1] - 0.5) * param.brightness
    return x
