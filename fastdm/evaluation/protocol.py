"""How an evaluation is done."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import nn

from fastdm.augmentation import Strategy
from fastdm.data.pool import Dataset
from fastdm.errors import FastDMError, one_of, real_number, whole_number
from fastdm.networks.architectures import build_network
from fastdm.networks.own import Builder, build_own, check_own, network_name
from fastdm.system.device import Precision


@dataclass(frozen=True)
class Protocol:
    """How an evaluation goes: arguments of `evaluate`, with the networks and the strategy decided.

    networks: names, or functions that build a module (`fastdm.networks.own`).
    name: "dm", the public code of DC and DM, or "idc", that of IDC and its relatives (M3D, DSDM, DANCE, TGDD):

    | | dm | idc |
    |---|---|---|
    | epochs | epochs + 1 | epochs |
    | batch_train | 256 | 64 |
    | learning rate | × 0.1, momentum reset, after epoch epochs // 2 + 1 | × 0.2 at ⅔ and at ⅚ |
    | augmentation | one family of the strategy per batch | color and flip, and one of the other families per batch |
    | cutmix | never | every other batch, at random |

    Parameters of the augmentation are drawn for every image. The idc strategy leaves out cutout. cutmix: False leaves
    that out of idc. batch_train: None takes that of the table. checks: how many times the accuracy is measured during
    a training, the last time at its end.

    Raises FastDMError for values that make no sense; `check` for what a data set does not allow.
    """

    networks: Sequence[str | Builder]
    strategy: str
    num_eval: int = 20
    epochs: int = 1000
    lr_net: float = 0.01
    batch_train: int | None = None
    seed: int = 0
    precision: Precision | None = None
    name: Literal["dm", "idc"] = "dm"
    cutmix: bool = True
    checks: int = 1

    def __post_init__(self) -> None:
        one_of("protocol", self.name, ("dm", "idc"))
        if self.batch_train is None:
            object.__setattr__(self, "batch_train", 256 if self.name == "dm" else 64)
        for name in ("num_eval", "epochs", "batch_train", "checks"):
            object.__setattr__(self, name, whole_number(name, getattr(self, name), 1))
        # NumPy's numbers become Python's, which JSON can hold.
        object.__setattr__(self, "seed", whole_number("seed", self.seed, 0))
        object.__setattr__(self, "lr_net", real_number("lr_net", self.lr_net))
        if not 0 < self.lr_net < math.inf:
            raise FastDMError(f"lr_net is {self.lr_net}; it must be above 0, and finite")
        several = isinstance(self.networks, Iterable) and not (
            isinstance(self.networks, str) or callable(self.networks)
        )
        if not several or not (networks := [*self.networks]):  # of an iterator only what is kept is there again
            raise FastDMError(f"networks is {self.networks!r}; it must be a list of at least one name")
        object.__setattr__(self, "networks", networks)
        for network in self.networks:
            if not (isinstance(network, str) or callable(network)):
                raise FastDMError(
                    f"networks has a {type(network).__name__} in it; each must be a name, or a function without "
                    "arguments that builds a module"
                )
        one_of("precision", self.precision, (None, *get_args(Precision)))
        Strategy.parse(self.strategy)

    def by_name(self) -> dict[str, str | Builder]:
        """The networks, each once, under the names that results call them by; FastDMError where two share one."""
        found: dict[str, str | Builder] = {}
        for network in self.networks:
            name = network_name(network)
            if found.setdefault(name, network) != network:
                raise FastDMError(
                    f"two networks are called {name}; build each in a function that has a name of its own"
                )
        return found

    @property
    def batch(self) -> int:
        """Images of a batch."""
        assert self.batch_train is not None
        return self.batch_train

    @property
    def all_epochs(self) -> int:
        """The epochs of a training; the public DM's loop has one more than it is asked for."""
        return self.epochs + (self.name == "dm")

    def steps(self, images: int) -> int:
        """Updates in one training on so many images."""
        return self.all_epochs * -(-images // self.batch)

    def measured_after(self, images: int) -> list[int]:
        """The numbers of updates after which the accuracy is measured, in a training on so many images."""
        steps = self.steps(images)
        return sorted({max(1, steps * check // self.checks) for check in range(1, self.checks + 1)})

    def check_batches(self, images: int, dataset: Dataset) -> None:
        """Raise FastDMError for a network that cannot be trained on the last batch of so many images: BatchNorm has no
        statistics of a single value."""
        if (images - 1) % self.batch:
            return
        channels, *_ = shape = dataset.image_shape
        for name, network in self.by_name().items():
            built: nn.Module = (
                build_own(network, 0, image_shape=shape)
                if callable(network)
                else build_network(
                    network, channels=channels, num_classes=dataset.num_classes, image_size=shape[1:], drawn=False
                )
            )
            try:
                with torch.no_grad(), torch.random.fork_rng():
                    built.train()(torch.zeros(1, *shape))
            except ValueError as error:
                if "more than 1 value per channel" not in str(error):
                    raise
                raise FastDMError(
                    f"{name} cannot be trained on a single image, which the last batch of {images} images is with a "
                    f"batch_train of {self.batch}: BatchNorm has no statistics of one value; use another batch_train"
                ) from error

    def check(self, dataset: Dataset) -> None:
        """Raise FastDMError for a network that cannot take the images, and where there is nothing to test on."""
        if dataset.test is None or len(dataset.test) == 0:
            raise FastDMError(
                f"data set {dataset.name} has no test part to measure accuracies on; it can be condensed without "
                "(fastdm condense --num_eval 0)"
            )
        channels, *_ = shape = dataset.image_shape
        for network in self.by_name().values():
            if not isinstance(network, str):
                check_own(network, shape, dataset.num_classes)
                continue
            build_network(
                network, channels=channels, num_classes=dataset.num_classes, image_size=shape[1:], drawn=False
            )
