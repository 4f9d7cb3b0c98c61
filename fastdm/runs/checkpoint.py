"""The state of a run on disk: named tensors, saved atomically, checked when read, kept twice."""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fastdm.errors import FastDMError
from fastdm.system.files import atomic_write, crc32, put_aside, reason, sync

FORMAT = "fastdm-checkpoint-2"
UNCHECKED_FORMAT = "fastdm-checkpoint-1"
"""The format before: its checksum is that of the tensors' bytes, without names, iteration and settings."""
FORMATS = (FORMAT, UNCHECKED_FORMAT)

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
    """Write `checkpoint.safetensors`; the one before it stays as `checkpoint-previous.safetensors`.

    Until the new one is safe on disk, neither of the two before is touched.
    """
    tensors = {name: tensor.cpu().contiguous() for name, tensor in checkpoint.tensors.items()}
    metadata = {
        "format": FORMAT,
        "iteration": str(checkpoint.iteration),
        "settings": checkpoint.settings,
        "crc32": _checksum(tensors, checkpoint.iteration, checkpoint.settings),
    }
    with atomic_write(folder / FILE) as temporary:
        save_file(tensors, temporary, metadata)
        sync(temporary)
        if (folder / FILE).exists():
            os.replace(folder / FILE, folder / PREVIOUS)


def load_checkpoint(
    folder: Path,
    settings: str,
    *,
    defaults: Mapping[str, Any] | None = None,
    note: Callable[[str], None] = lambda text: None,
) -> Checkpoint | None:
    """The newest checkpoint of a run folder that is whole, None if the folder has none.

    A damaged one is put aside, with a note, if the one before it can take its place. defaults: the values of settings
    that older checkpoints do not state. Raises FastDMError where only damaged ones are left, naming them, and for a
    checkpoint of other settings, naming those that differ.
    """
    paths = [folder / name for name in (FILE, PREVIOUS) if (folder / name).exists()]
    damages = []
    for path in paths:
        try:
            checkpoint = read_checkpoint(path)
        except FastDMError as error:
            damages.append((path, error))
            continue
        _check_settings(path, checkpoint.settings, settings, defaults or {})
        for damaged, why in damages:
            aside = put_aside(damaged)
            note(f"{why}; it is kept as {aside.name}, and iteration {checkpoint.iteration} is resumed from {path}")
        return checkpoint
    if damages:
        raise FastDMError(f"{'; '.join(str(why) for _, why in damages)}; nothing is left to resume: start over")
    return None


def read_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint in a file; FastDMError, naming it, for one that is damaged."""
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        iteration, settings = int(metadata["iteration"]), metadata["settings"]
        expected = _checksum(tensors, iteration, settings)
        if metadata["format"] == UNCHECKED_FORMAT:
            expected = str(crc32(*_by_name(tensors)))
        elif metadata["format"] != FORMAT:
            raise FastDMError(f"its format is {metadata['format']!r}, not {FORMAT!r}")
        if metadata["crc32"] != expected:
            raise FastDMError("its checksum does not match")
        if iteration < 0 or not isinstance(json.loads(settings), dict):
            raise FastDMError("its iteration or its settings are none")
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise FastDMError(f"the checkpoint {path} is damaged ({reason(error)})") from error
    return Checkpoint(iteration, tensors, settings)


def _check_settings(path: Path, saved: str, settings: str, defaults: Mapping[str, Any]) -> None:
    now = json.loads(settings)
    before = {**{name: value for name, value in defaults.items() if name in now}, **json.loads(saved)}
    changes = [
        f"{name} was {before.get(name)!r} and is {now.get(name)!r}"
        for name in {**before, **now}
        if before.get(name) != now.get(name)
    ]
    if changes:
        raise FastDMError(
            f"{path} was created with different settings ({'; '.join(changes)}); resume with the same ones"
        )


def _checksum(tensors: Mapping[str, Tensor], iteration: int, settings: str) -> str:
    """CRC-32 of the bytes of all tensors, then of what else a checkpoint says."""
    facts = json.dumps([iteration, settings, [[name, *_kind(tensors[name])] for name in sorted(tensors)]])
    return str(crc32(*_by_name(tensors), text=facts))


def _kind(tensor: Tensor) -> tuple[str, list[int]]:
    return str(tensor.dtype), list(tensor.shape)


def _by_name(tensors: Mapping[str, Tensor]) -> list[Tensor]:
    return [tensors[name] for name in sorted(tensors)]
