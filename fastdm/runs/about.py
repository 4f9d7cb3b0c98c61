"""What a run folder keeps besides settings and results: data set, machine, memory plan, notes; `about.json`."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastdm.errors import FastDMError, whole_number
from fastdm.system.checks import parse_json
from fastdm.system.files import atomic_write

FILE = "about.json"


@dataclass(frozen=True)
class About:
    """dataset: its name, class_names, image_shape [C, H, W], mean, std and train_images; machine: as
    `fastdm.system.machine` describes it; plan: bytes and sizes of the memory plan; notes: what the run said about
    itself, warnings included; peak_bytes: the most memory measured, None until the run has ended (on a GPU what tensors
    took, on a CPU all of the process). Those of the last session, if the run was resumed."""

    dataset: Mapping[str, Any]
    machine: Mapping[str, str] = field(default_factory=dict)
    plan: Mapping[str, int] = field(default_factory=dict)
    notes: Sequence[str] = ()
    peak_bytes: int | None = None

    def write(self, folder: Path) -> None:
        with atomic_write(folder / FILE) as temporary:
            temporary.write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> "About | None":
        """What the folder keeps; None for a run of an earlier version, which kept nothing."""
        path = folder / FILE
        if not path.exists():
            return None
        try:
            about = cls(**parse_json(path.read_bytes()))
            _check_dataset(about.dataset)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise FastDMError(f"{path} is damaged ({error}); remove it to go without") from error
        return about


def _check_dataset(dataset: Mapping[str, Any]) -> None:
    """Raise one of several errors unless a data set's name, classes and shape are what they should be."""
    if not (isinstance(dataset["name"], str) and isinstance(dataset["class_names"], list) and dataset["class_names"]):
        raise ValueError("its data set must have a name and a list of class_names")
    channels, height, width = dataset["image_shape"]
    for side in (channels, height, width):
        whole_number("image_shape", side, 1)
