"""Settings of a condensation: the paper's names and defaults, and presets per data set."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch

from fastdm.augmentation import Strategy, default_strategy
from fastdm.data.pool import Dataset
from fastdm.errors import FastDMError, one_of, real_number, whole_number
from fastdm.networks.architectures import default_network
from fastdm.objectives import ObjectiveName
from fastdm.synthetic.partition import check_partition
from fastdm.system.device import Precision, fastest_precision

_FLOAT32 = torch.finfo(torch.float32)


@dataclass(frozen=True)
class Settings:
    """Everything besides the data set and the pool of networks that determines the result of `fastdm.condense`.

    The defaults are the paper's; `fastdm.condensation.recipes` has another set of values.

    ipc: synthetic images per class.
    iterations: pixel updates, each with a new random network.
    batch_real: real images per class and iteration, drawn without replacement.
    lr_img: learning rate of the normalised pixels or, with `clamp`, of pixels in [0, 1]; None takes a value for the
    data set (see `resolve`).
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
    partition: f, so that every synthetic image is a canvas of f × f training images (`fastdm.synthetic.partition`).
    objective: what is matched: "mean", the class means; "cov", also the covariances; "mmd", all moments, through a
    Gaussian kernel (`fastdm.objectives`).
    networks: what images are matched in: "random" networks, or "trained" ones, snapshots of a pool
    (`fastdm.train_pool`).
    ce_weight: weight of the cross-entropy of the synthetic images in a snapshot of the pool, mean over the images of a
    class, summed over classes as the matching loss is; 0 leaves it out.
    ce_ahead: that snapshot is 0 to `ce_ahead` snapshots later than the one that is matched in; 0: the same one, which
    saves a forward and a backward pass.
    clamp: whether pixels are kept between black and white, and learned in units of [0, 1]; None: where the partition is
    above 1 or the networks are trained.

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
    partition: int = 1
    objective: ObjectiveName = "mean"
    networks: Literal["random", "trained"] = "random"
    ce_weight: float = 0.0
    ce_ahead: int = 6
    clamp: bool | None = None

    def __post_init__(self) -> None:
        # NumPy's values become Python's, which JSON can hold.
        lowest_values = {"ipc": 1, "iterations": 0, "batch_real": 1, "seed": 0, "partition": 1, "ce_ahead": 0}
        for name, lowest in lowest_values.items():
            object.__setattr__(self, name, whole_number(name, getattr(self, name), lowest))
        if self.lr_img is not None:
            object.__setattr__(self, "lr_img", real_number("lr_img", self.lr_img))
            if not _FLOAT32.tiny <= self.lr_img <= _FLOAT32.max:
                raise FastDMError(f"lr_img is {self.lr_img}; it must be above 0 and finite, as a number of 32 bits")
        object.__setattr__(self, "momentum", real_number("momentum", self.momentum))
        if not 0 <= self.momentum < 1:
            raise FastDMError(f"momentum is {self.momentum}; it must be at least 0 and below 1")
        if not isinstance(self.network, str | None):
            raise FastDMError(
                f"network is a {type(self.network).__name__}; in settings it must be a name (condense also takes a "
                "function that builds one: network=…)"
            )
        one_of("init", self.init, ("real", "noise"))
        one_of("precision", self.precision, (None, "fp32", "tf32", "bf16"))
        one_of("small_classes", self.small_classes, ("error", "use_all"))
        one_of("objective", self.objective, get_args(ObjectiveName))
        one_of("networks", self.networks, ("random", "trained"))
        one_of("deterministic", self.deterministic, (False, True))
        object.__setattr__(self, "deterministic", bool(self.deterministic))
        one_of("clamp", self.clamp, (None, True, False))
        object.__setattr__(self, "clamp", None if self.clamp is None else bool(self.clamp))
        object.__setattr__(self, "ce_weight", real_number("ce_weight", self.ce_weight))
        if not 0 <= self.ce_weight <= _FLOAT32.max:
            raise FastDMError(
                f"ce_weight is {self.ce_weight}; it must be at least 0 and finite, as a number of 32 bits"
            )
        if self.ce_weight and self.networks != "trained":
            raise FastDMError(
                f"ce_weight is {self.ce_weight}, but the networks are random and cannot tell classes apart; "
                "use networks='trained' with a pool, or a ce_weight of 0"
            )
        Strategy.parse(self.strategy, self.aug_mode)

    def resolve(self, dataset: Dataset, device: torch.device) -> "Settings":
        """Replace every None by the value for this data set and device.

        lr_img: 1; 10 for CIFAR-10 at an ipc of 100 and more (the public code's commands); with `clamp` 0.02 for each
        image of a class, at least 0.05 (twice to five times what DANCE takes for 10,000 iterations: chosen for runs of
        hundreds to thousands). deterministic: False on a CPU, which repeats anyway. The others: see
        `default_strategy`, `default_network` and `fastest_precision`. Raises FastDMError for images that the partition
        cannot divide.
        """
        check_partition(self.partition, dataset.image_shape[1:])
        clamp = self.clamp if self.clamp is not None else self.partition > 1 or self.networks == "trained"
        lr_img = 10.0 if dataset.name == "CIFAR10" and self.ipc >= 100 else 1.0
        if clamp:
            lr_img = max(0.05, 0.02 * self.ipc)
        return dataclasses.replace(
            self,
            lr_img=lr_img if self.lr_img is None else self.lr_img,
            strategy=default_strategy(dataset.name) if self.strategy is None else self.strategy,
            network=self.network or default_network(dataset.image_shape),
            precision=self.precision or fastest_precision(device),
            clamp=clamp,
            deterministic=self.deterministic and device.type != "cpu",  # a CPU always repeats
        )

    def resume_key(self) -> dict[str, Any]:
        """What may not change when a run is resumed: all but the number of iterations.

        What version 0.1 did not have is left out where it is as if it were not there: its runs can be resumed.
        """
        newer = {"partition": 1, "objective": "mean", "networks": "random", "clamp": False, "ce_weight": 0.0}
        if not self.ce_weight:
            newer["ce_ahead"] = self.ce_ahead
        return {
            name: value
            for name, value in dataclasses.asdict(self).items()
            if name != "iterations" and (name not in newer or value != newer[name])
        }
