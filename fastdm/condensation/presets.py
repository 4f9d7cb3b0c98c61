"""Known data sets by name: their shapes, and what they are condensed and evaluated with."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fastdm.data.pool import Dataset
from fastdm.errors import FastDMError, unknown


@dataclass(frozen=True)
class Preset:
    """classes, images, image_shape: of the training part of the data set, its shape being (C, H, W).

    dataset: its name, where `fastdm.open_dataset` knows it by one. settings: fields of `Settings`; evaluation: options
    of `fastdm condense` that say how many sets are condensed, and how they are evaluated.
    """

    classes: int
    images: int
    image_shape: tuple[int, int, int]
    dataset: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    evaluation: Mapping[str, Any] = field(default_factory=dict)

    @property
    def options(self) -> dict[str, Any]:
        """All of it but the data set as options of `fastdm condense`."""
        return {**self.settings, **self.evaluation}

    def check(self, name: str, dataset: Dataset) -> None:
        """Raise FastDMError for images of another size; a part of the classes is welcome."""
        if dataset.image_shape != self.image_shape:
            theirs, ours = ("x".join(map(str, shape)) for shape in (dataset.image_shape, self.image_shape))
            raise FastDMError(f"the images of {dataset.name} are {theirs}, but preset {name} is for {ours}")


_PAPER = {"iterations": 20_000, "batch_real": 256}
_LARGE = {"iterations": 10_000, "batch_real": 256}
_PAPERS_EVALUATION = {"num_exp": 5, "num_eval": 20, "epoch_eval_train": 1000}
_LARGE_EVALUATION = {"num_exp": 1, "num_eval": 5, "epoch_eval_train": 300, "save_every": 500}

PRESETS: Mapping[str, Preset] = {
    "cifar10": Preset(
        10, 50_000, (3, 32, 32), "CIFAR10", {"ipc": 10, "network": "ConvNet", **_PAPER}, _PAPERS_EVALUATION
    ),
    "cifar100": Preset(
        100, 50_000, (3, 32, 32), "CIFAR100", {"ipc": 10, "network": "ConvNet", **_PAPER}, _PAPERS_EVALUATION
    ),
    "tinyimagenet": Preset(
        200, 100_000, (3, 64, 64), "TinyImageNet", {"ipc": 10, "network": "ConvNetD4", **_LARGE}, _PAPERS_EVALUATION
    ),
    "imagenet64": Preset(
        1000,
        1_281_167,
        (3, 64, 64),
        None,
        {"ipc": 10, "network": "ConvNetD4", **_LARGE},
        _LARGE_EVALUATION,
    ),
    "imagenet128": Preset(
        1000,
        1_281_167,
        (3, 128, 128),
        None,
        {"ipc": 10, "network": "ConvNetD5", **_LARGE, "batch_real": 128},
        _LARGE_EVALUATION,
    ),
}
"""CIFAR's are the public code's. Nobody has published commands for the larger sets: networks are as deep as the paper
has them, one block more for every doubling of the side, and the rest is chosen here: half of the iterations, and
evaluations that end within hours."""


def find_preset(name: str) -> Preset:
    """The preset of that name. Raises FastDMError for one that is not known.

    >>> find_preset("imagenet64").settings["network"]
    'ConvNetD4'
    """
    if name not in PRESETS:
        raise unknown("preset", name, list(PRESETS))
    return PRESETS[name]
