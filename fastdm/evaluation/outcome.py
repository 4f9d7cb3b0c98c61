"""The result of an evaluation."""

import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Evaluation:
    """How well networks trained on a set classify the test images, by the name of their architecture.

    accuracies: the test accuracy in [0, 1] of every network at the end of its training. top5: for every network, the
    share of test images whose class is among its five most likely ones. confusion: counts of test images, summed over
    the networks; a row is a true class, a column a predicted one. An evaluation that an earlier version recorded has
    neither top5 nor confusion.

    best: the highest accuracy measured during each training, if it was measured more than once (`checks`). The test
    images chose that moment, so it overestimates the accuracy; many papers report it nevertheless. random: with soft
    labels, the evaluation of random real images that the same teacher labelled.
    """

    accuracies: dict[str, list[float]]
    best: dict[str, list[float]] = field(default_factory=dict)
    random: "Evaluation | None" = None
    top5: dict[str, list[float]] = field(default_factory=dict)
    confusion: dict[str, list[list[int]]] = field(default_factory=dict, repr=False)

    @classmethod
    def pooled(cls, evaluations: "Iterable[Evaluation]") -> "Evaluation":
        """The networks of several evaluations as those of one."""
        pooled = cls({})
        for evaluation in evaluations:
            for name, matrix in evaluation.confusion.items():
                before = pooled.confusion.get(name, [[0] * len(matrix)] * len(matrix))
                pooled.confusion[name] = [
                    [ours + theirs for ours, theirs in zip(*rows, strict=True)]
                    for rows in zip(before, matrix, strict=True)
                ]
            for kind in ("accuracies", "best", "top5"):
                for name, values in getattr(evaluation, kind).items():
                    getattr(pooled, kind).setdefault(name, []).extend(values)
        return pooled

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Evaluation":
        """The evaluation whose `summary` a file contains, perhaps among other things.

        Raises ValueError, TypeError or AttributeError for values that are not numbers.
        """

        def numbers(kind: str) -> dict[str, list[float]]:
            return {str(name): [*map(float, each)] for name, each in content.get(kind, {}).items() if len(each)}

        confusion = {
            str(name): [[*map(int, row)] for row in matrix] for name, matrix in content.get("confusion", {}).items()
        }
        return cls(numbers("accuracies"), numbers("best"), top5=numbers("top5"), confusion=confusion)

    def summary(self) -> dict[str, Any]:
        """Everything that was measured, as JSON takes it; the accuracy of a class without test images is null."""
        per_class = {
            name: [None if math.isnan(value) else value for value in values] for name, values in self.per_class.items()
        }
        return {
            "mean": self.mean,
            "std": self.std,
            "accuracies": self.accuracies,
            **({"best": self.best} if self.best else {}),
            **({"top5": self.top5} if self.top5 else {}),
            **({"per_class": per_class, "confusion": self.confusion} if self.confusion else {}),
        }

    @property
    def mean(self) -> dict[str, float]:
        return {name: statistics.fmean(values) for name, values in self.accuracies.items()}

    @property
    def std(self) -> dict[str, float]:
        """Standard deviation over the networks (divided by their number, as the public code does)."""
        return {name: statistics.pstdev(values) for name, values in self.accuracies.items()}

    @property
    def per_class(self) -> dict[str, list[float]]:
        """The accuracy on the test images of each class, averaged over the networks; nan for a class without any."""
        return {
            name: [row[label] / sum(row) if sum(row) else math.nan for label, row in enumerate(matrix)]
            for name, matrix in self.confusion.items()
        }
