"""What is matched between real and synthetic images."""

from collections.abc import Callable
from typing import Literal

from fastdm.objectives.class_means import ClassMeans
from fastdm.objectives.covariance import Covariances
from fastdm.objectives.mmd import GaussianMMD
from fastdm.objectives.objective import Objective


def build_objective(name: Literal["mean", "mmd", "cov"]) -> Objective:
    """The objective of a setting."""
    known: dict[str, Callable[[], Objective]] = {"mean": ClassMeans, "mmd": GaussianMMD, "cov": Covariances}
    return known[name]()
