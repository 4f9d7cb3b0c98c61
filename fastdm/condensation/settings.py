"""Settings of a condensation: the paper's names and defaults, and presets per data set."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

import torch

from fastdm.augmentation import Strategy, default_strategy
from fastdm.data.pool import Dataset
from fastdm.errors import FastDMError, one_of, real_number, whole_number
from fastdm.networks.architectures import default_network
from fastdm.system.device import Precision, fastest_precision


@dataclass(frozen=True)
class Settings:
    """Everything besides the data set that determines the result of `fastdm.condense`.

    ipc: synthetic images per class.
    iterations: pixel updates, each with a new random network.
    batch_real: real images per class and iteration, drawn without replacement.
    lr_img: learning rate of the pixels; None takes the paper's value for the data set (see `resolve`).
    momentum: momentum of the SGD on the pixels.
    init: "real" starts from random real images, "noise" from N(0, 1).
    strategy: DSA families joined by underscores, or "none"; None takes the data set's (digits are not flipped).
    aug_mode: "S" draws one family per class and iteration, "M" applies all.
    network: architecture of the random networks (see `fastdm.networks.network_names`); None takes ConvNet of the
    depth that suits the image size.
    seed: every draw is a function of (seed, iteration, class).
    precision: precision of the networks: "fp32", "tf32" or "bf16"; None takes the fastest that the device has and
    that reaches the same accuracy. Pixels, class means and the loss are always float32.
    deterministic: on a GPU, let cuDNN use repeatable algorithms only, so that a run repeats bit for bit; a CPU always
    does.
    small_classes: what to do with a class of fewer than batch_real images: "error", or "use_all" of them.

    Raises FastDMError for a value that makes no sense.

    >>> import fastdm
    >>> fastdm.Settings(ipc=10, iterations=5000).lr_img is None
    True
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
            object.__setattr__(self, name, whole_number(name, getattr(self, name), lowest))
        if self.lr_img is not None:
            object.__setattr__(self, "lr_img", real_number("lr_img", self.lr_img))
            if not 0 < self.lr_img < math.inf:
                raise FastDMError(f"lr_img is {self.lr_img}; it must be above 0 and finite")
        object.__setattr__(self, "momentum", real_number("momentum", self.momentum))
        if not 0 <= self.momentum < 1:
            raise FastDMError(f"momentum is {self.momentum}; it must be at least 0 and below 1")
        one_of("init", self.init, ("real", "noise"))
        one_of("precision", self.precision, (None, "fp32", "tf32", "bf16"))
        one_of("small_classes", self.small_classes, ("error", "use_all"))
        Strategy.parse(self.strategy, self.aug_mode)

    def resolve(self, dataset: Dataset, device: torch.device) -> "Settings":
        """Replace every None by the value for this data set and device.

        lr_img: 1; 10 for CIFAR-10 at an ipc of 100 and more (the public code's commands). deterministic: False on a
        CPU, which repeats anyway. The others: see `default_strategy`, `default_network` and `fastest_precision`.
        """
        lr_img = 10.0 if dataset.name == "CIFAR10" and self.ipc >= 100 else 1.0
        return dataclasses.replace(
            self,
            lr_img=lr_img if self.lr_img is None else self.lr_img,
            strategy=default_strategy(dataset.name) if self.strategy is None else self.strategy,
            network=self.network or default_network(dataset.image_shape),
            precision=self.precision or fastest_precision(device),
            deterministic=self.deterministic and device.type != "cpu",  # a CPU always repeats
        )

    def resume_key(self) -> dict[str, Any]:
        """What may not change when a run is resumed: all but the number of iterations."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name != "iterations"}
