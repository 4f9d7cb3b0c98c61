"""What is matched between real and synthetic images."""

from collections.abc import Callable
from typing import Literal

from fastdm.objectives.class_means import ClassMeans
from fastdm.objectives.covariance import Covariances
from fastdm.objectives.mmd import GaussianMMD
from fastdm.objectives.objective import Objective

ObjectiveName = Literal["mean", "mmd", "cov"]

_OBJECTIVES: dict[ObjectiveName, Callable[[], Objective]] = {"mean": ClassMeans, "mmd": GaussianMMD, "cov": Covariances}


def build_objective(name: ObjectiveName) -> Objective:
    """The objective of a setting."""
    return _OBJECTIVES[name]()
