"""What a run folder keeps besides settings and results: data set, machine, memory plan, notes; `about.json`."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastdm.errors import FastDMError
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
            temporary.write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n")

    @classmethod
    def read(cls, folder: Path) -> "About | None":
        """What the folder keeps; None for a run of an earlier version, which kept nothing."""
        path = folder / FILE
        if not path.exists():
            return None
        try:
            about = cls(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise FastDMError(f"{path} is damaged ({error}); remove it to go without") from error
        return about
