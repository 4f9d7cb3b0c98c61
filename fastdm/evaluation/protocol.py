"""How an evaluation is done, and what it gives."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import get_args

from fastdm.augmentation import Strategy
from fastdm.data.pool import Dataset
from fastdm.errors import FastDMError, one_of, whole_number
from fastdm.networks.architectures import build_network
from fastdm.system.device import Precision


@dataclass(frozen=True)
class Evaluation:
    """accuracies: for each architecture, the test accuracy in [0, 1] of every network that was trained."""

    accuracies: dict[str, list[float]]

    @classmethod
    def pooled(cls, evaluations: "Iterable[Evaluation]") -> "Evaluation":
        """The networks of several evaluations as those of one."""
        accuracies: dict[str, list[float]] = {}
        for evaluation in evaluations:
            for name, values in evaluation.accuracies.items():
                accuracies.setdefault(name, []).extend(values)
        return cls(accuracies)

    @property
    def mean(self) -> dict[str, float]:
        return {name: statistics.fmean(values) for name, values in self.accuracies.items()}

    @property
    def std(self) -> dict[str, float]:
        """Standard deviation over the networks (division by their number, as the public code reports it)."""
        return {name: statistics.pstdev(values) for name, values in self.accuracies.items()}


@dataclass(frozen=True)
class Protocol:
    """How an evaluation goes: arguments of `evaluate`, with the networks and the strategy decided.

    Raises FastDMError for values that make no sense; `check` for what a data set does not allow.
    """

    networks: Sequence[str]
    strategy: str
    num_eval: int = 20
    epochs: int = 1000
    lr_net: float = 0.01
    batch_train: int = 256
    seed: int = 0
    precision: Precision | None = None

    def __post_init__(self) -> None:
        for name in ("num_eval", "epochs", "batch_train"):
            object.__setattr__(self, name, whole_number(name, getattr(self, name), 1))
        if not 0 < self.lr_net < math.inf:
            raise FastDMError(f"lr_net is {self.lr_net}; it must be above 0, and finite")
        if isinstance(self.networks, str) or not self.networks:
            raise FastDMError(f"networks is {self.networks!r}; it must be a list of at least one name")
        one_of("precision", self.precision, (None, *get_args(Precision)))
        whole_number("seed", self.seed, 0)
        Strategy.parse(self.strategy)

    def steps(self, images: int) -> int:
        """Updates in one training on so many images."""
        return (self.epochs + 1) * -(-images // self.batch_train)

    def check(self, dataset: Dataset) -> None:
        """Raise FastDMError for a network that cannot take the images, and where there is nothing to test on."""
        if dataset.test is None or len(dataset.test) == 0:
            raise FastDMError(
                f"data set {dataset.name} has no test part to measure accuracies on; it can be condensed without "
                "(fastdm condense --num_eval 0)"
            )
        for name in self.networks:
            channels, *_ = dataset.image_shape
            size = dataset.image_shape[1:]
            build_network(name, channels=channels, num_classes=dataset.num_classes, image_size=size, drawn=False)
