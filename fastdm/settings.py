"""Settings of a condensation: the paper's names and defaults, and presets per data set."""

import dataclasses
import math
import operator
from dataclasses import dataclass
from typing import Any, Literal

import torch

from fastdm.augmentation import Strategy
from fastdm.data.pool import Dataset
from fastdm.errors import FastDMError

DSA_STRATEGY = "color_crop_cutout_flip_scale_rotate"
"""The public code's default strategy."""

Precision = Literal["fp32", "tf32", "bf16"]


@dataclass(frozen=True)
class Settings:
    """Everything that decides the result of `fastdm.condense`, beside the data set.

    ipc: synthetic images per class.
    iterations: pixel updates, each with a new random network.
    batch_real: real images per class and iteration, drawn without replacement.
    lr_img: learning rate of the pixels; None takes the paper's value for the data set (see `resolve`).
    momentum: of the pixels' SGD.
    init: "real" starts from random real images, "noise" from N(0, 1).
    strategy: DSA families joined by underscores, or "none"; None takes the data set's (digits are not flipped).
    aug_mode: "S" draws one family per class and iteration, "M" applies all.
    network: architecture of the random networks (see `fastdm.networks.network_names`); None takes ConvNet of the
    depth that suits the image size.
    seed: every draw is a function of (seed, iteration, class).
    precision: arithmetic of the networks: "fp32", "tf32" or "bf16"; None takes the fastest that the device has and
    that reaches the same accuracy. Pixels, class means and the loss are always float32.
    deterministic: on a GPU, let cuDNN use repeatable algorithms only, so that a run repeats bit for bit; a CPU always
    does.
    small_classes: what to do with a class of fewer than batch_real images: "error", or "use_all" of them.
    """

    ipc: int = 10
    iterations: int = 20_000
    batch_real: int = 256
    lr_img: float | None = None
    momentum: float = 0.5
    init: Literal["real", "noise"] = "real"
    strategy: str | None = None
    aug_mode: Literal["S", "M"] = "S"
    network: str | None = None
    seed: int = 0
    precision: Precision | None = None
    deterministic: bool = False
    small_classes: Literal["error", "use_all"] = "use_all"

    def __post_init__(self) -> None:
        # NumPy's numbers become Python's, which JSON can hold.
        for name, lowest in (("ipc", 1), ("iterations", 0), ("batch_real", 1), ("seed", 0)):
            object.__setattr__(self, name, _whole(name, getattr(self, name), lowest))
        if self.lr_img is not None:
            object.__setattr__(self, "lr_img", _real("lr_img", self.lr_img))
            if not 0 < self.lr_img < math.inf:
                raise FastDMError(f"lr_img is {self.lr_img}; it must be above 0 and finite")
        object.__setattr__(self, "momentum", _real("momentum", self.momentum))
        if not 0 <= self.momentum < 1:
            raise FastDMError(f"momentum is {self.momentum}; it must be at least 0 and below 1")
        _one_of("init", self.init, ("real", "noise"))
        _one_of("precision", self.precision, (None, "fp32", "tf32", "bf16"))
        _one_of("small_classes", self.small_classes, ("error", "use_all"))
        Strategy.parse(self.strategy, self.aug_mode)

    def resolve(self, dataset: Dataset, device: torch.device) -> "Settings":
        """Replace every None by the value for this data set and device.

        lr_img: 1; 10 for CIFAR-10 at ipc of 100 and more (the public code's commands). network: ConvNet (depth 3), and
        one block more for every doubling of the side beyond 32 pixels (ConvNetD4 at 64, as the paper), up to ConvNetD6.
        """
        lr_img = 10.0 if dataset.name == "CIFAR10" and self.ipc >= 100 else 1.0
        doublings = max(0, min(3, min(dataset.image_shape[1:]).bit_length() - 6))
        return dataclasses.replace(
            self,
            lr_img=lr_img if self.lr_img is None else self.lr_img,
            strategy=default_strategy(dataset.name) if self.strategy is None else self.strategy,
            network=self.network or ("ConvNet" if doublings == 0 else f"ConvNetD{3 + doublings}"),
            precision=self.precision or fastest_precision(device),
        )

    def identity(self) -> dict[str, Any]:
        """What a run may not change when it is resumed: all but the number of iterations."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name != "iterations"}


def default_strategy(dataset: str) -> str:
    """The paper's strategy, for the data set of that name: digits are not flipped."""
    return DSA_STRATEGY.replace("_flip", "") if dataset in ("MNIST", "SVHN", "digits") else DSA_STRATEGY


def fastest_precision(device: torch.device) -> Precision:
    """The fastest precision that reaches the accuracy of float32 within noise on this device."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp32"
    # Without AMX tiles, the float32 blocks of csrc, which multiply a quarter as often (Winograd), are faster than
    # PyTorch's bfloat16 convolutions, with AVX512-BF16 too.
    return "bf16" if device.type == "cpu" and torch.cpu._is_amx_tile_supported() else "fp32"


def _whole(name: str, value: Any, lowest: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        number = lowest - 1
    if isinstance(value, bool) or not lowest <= number < 2**63:
        raise FastDMError(f"{name} is {value!r}; it must be a whole number of at least {lowest}")
    return number


def _real(name: str, value: Any) -> float:
    if isinstance(value, bool | str) or not hasattr(value, "__float__"):
        raise FastDMError(f"{name} is {value!r}; it must be a number")
    return float(value)


def _one_of(name: str, value: object, allowed: tuple[object, ...]) -> None:
    if value not in allowed:
        raise FastDMError(f"{name} is {value!r}; it must be one of {', '.join(repr(choice) for choice in allowed)}")
