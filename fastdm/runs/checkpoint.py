"""The state of a run on disk: named tensors, saved atomically, refused when damaged, kept twice."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fastdm.errors import FastDMError
from fastdm.system.files import atomic_write, crc32

FORMAT = "fastdm-checkpoint-1"
FILE = "checkpoint.safetensors"
PREVIOUS = "checkpoint-previous.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """iteration: updates done; tensors: the state by name, on the CPU; settings: as JSON text, with what identifies the
    data set."""

    iteration: int
    tensors: Mapping[str, Tensor]
    settings: str


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write `checkpoint.safetensors`; the one before it stays as `checkpoint-previous.safetensors`."""
    tensors = {name: tensor.cpu().contiguous() for name, tensor in checkpoint.tensors.items()}
    metadata = {
        "format": FORMAT,
        "iteration": str(checkpoint.iteration),
        "settings": checkpoint.settings,
        "crc32": str(_crc32(tensors)),
    }
    with atomic_write(folder / FILE) as temporary:
        save_file(tensors, temporary, metadata)
        if (folder / FILE).exists():
            os.replace(folder / FILE, folder / PREVIOUS)


def load_checkpoint(folder: Path, settings: str) -> Checkpoint | None:
    """The checkpoint of a run folder, None if it has none.

    Raises FastDMError for a damaged file, by name, and for a checkpoint of other settings, naming those that differ.
    """
    path = folder / FILE
    if not path.exists():
        if (folder / PREVIOUS).exists():  # stopped between the two renames of a save
            path = folder / PREVIOUS
        else:
            return None
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        iteration, saved, checksum = int(metadata["iteration"]), metadata["settings"], metadata["crc32"]
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise _damaged(path, str(error)) from error
    if checksum != str(_crc32(tensors)):
        raise _damaged(path, "its checksum does not match")
    if saved != settings:
        before, now = json.loads(saved), json.loads(settings)
        changes = [
            f"{name} was {before.get(name)!r} and is {now.get(name)!r}"
            for name in {**before, **now}
            if before.get(name) != now.get(name)
        ]
        raise FastDMError(
            f"{path} was created with different settings ({'; '.join(changes)}); resume with the same ones"
        )
    return Checkpoint(iteration, tensors, saved)


def _damaged(path: Path, why: str) -> FastDMError:
    other = path.with_name(PREVIOUS)
    remedy = "start without it"
    if other.exists() and other != path:
        remedy = f"rename {other} to {FILE} to resume from there"
    return FastDMError(f"the checkpoint {path} is damaged ({why}); {remedy}")


def _crc32(tensors: Mapping[str, Tensor]) -> int:
    return crc32(*(tensors[name] for name in sorted(tensors)))
