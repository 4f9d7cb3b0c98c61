"""The state of a run on disk: named tensors in shards of rows, an index that is written last, checksums of all of it.

Nothing here knows what the tensors mean. A checkpoint is `checkpoint.json`, the index, and the safetensors files that
it names, one for each rank that wrote it; the one before stays as `checkpoint-previous.json`.
"""

import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fastdm.errors import FastDMError
from fastdm.system.checks import parse_json
from fastdm.system.files import atomic_write, crc32, put_aside, reason, sync
from fastdm.system.ranks import ALONE, Ranks

FORMAT = "fastdm-checkpoint-3"
FILE = "checkpoint.json"
PREVIOUS = "checkpoint-previous.json"
SHARDS = "checkpoint-*-*of*.safetensors"
"""What the names of shards match: the iteration, number and count of the ranks."""

SINGLE_FORMATS = ("fastdm-checkpoint-2", "fastdm-checkpoint-1")
"""The formats before, of a single file with one checksum. The older one's is that of the tensors' bytes alone, without
names, iteration and settings."""
SINGLE_FILES = ("checkpoint.safetensors", "checkpoint-previous.safetensors")

NAMES = (FILE, PREVIOUS, *SINGLE_FILES)
"""What a folder's checkpoints are called, newest first."""


@dataclass(frozen=True)
class Checkpoint:
    """iteration: updates done; tensors: the state by name, on the CPU; settings: as JSON text, with what identifies the
    data set."""

    iteration: int
    tensors: Mapping[str, Tensor]
    settings: str


@dataclass(frozen=True)
class Shard:
    """A file that holds the rows `first` to `stop` - 1 of every tensor, with the CRC-32 of each one's bytes."""

    file: str
    first: int
    stop: int
    crc32: Mapping[str, int]


def write_shard(
    folder: Path, iteration: int, tensors: Mapping[str, Tensor], rows: range, place: tuple[int, int]
) -> Shard:
    """Write one rank's rows; place: its number, and the number of ranks. The tensors are on the CPU, and contiguous."""
    name = f"checkpoint-{iteration:08d}-{place[0]}of{place[1]}.safetensors"
    with atomic_write(folder / name) as temporary:
        save_file(dict(tensors), temporary, {"format": FORMAT, "iteration": str(iteration)})
    return Shard(name, rows.start, rows.stop, {key: crc32(tensor) for key, tensor in tensors.items()})


def write_index(folder: Path, iteration: int, settings: str, shards: Sequence[Shard]) -> None:
    """Make the shards a checkpoint; the one before it is kept, and what is older is removed.

    Until the new one is safe on disk, neither of the two before is touched.
    """
    content = {
        "format": FORMAT,
        "iteration": iteration,
        "settings": settings,
        "shards": [dataclasses.asdict(shard) for shard in shards],
    }
    content["crc32"] = crc32(text=json.dumps(content))
    with atomic_write(folder / FILE) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        sync(temporary)
        if (folder / FILE).exists():
            os.replace(folder / FILE, folder / PREVIOUS)
    _remove_older(folder)


def _remove_older(folder: Path) -> None:
    """Remove shards that neither index names, and single files once there are two indices."""
    needed: set[str] = set()
    for path in (folder / FILE, folder / PREVIOUS):
        try:
            needed |= {shard.file for shard in _read_index(path)[2]} if path.exists() else set()
        except _Damaged:
            return
    for path in folder.glob(SHARDS):
        if path.name not in needed:
            path.unlink(missing_ok=True)
    if (folder / PREVIOUS).exists():
        for name in SINGLE_FILES:
            (folder / name).unlink(missing_ok=True)


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint of a single shard."""
    tensors = {name: tensor.cpu().contiguous() for name, tensor in checkpoint.tensors.items()}
    rows = range(len(next(iter(tensors.values()))))
    shard = write_shard(folder, checkpoint.iteration, tensors, rows, (0, 1))
    write_index(folder, checkpoint.iteration, checkpoint.settings, [shard])


class _Damaged(FastDMError):
    """A checkpoint of which `path` is damaged or missing."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(f"the checkpoint {path} is damaged ({why})" if path.exists() else f"{path} is missing")
        self.path = path


def load_checkpoint(
    folder: Path,
    settings: str,
    rows: range | None = None,
    *,
    defaults: Mapping[str, Any] | None = None,
    note: Callable[[str], None] = lambda text: None,
    ranks: Ranks = ALONE,
) -> Checkpoint | None:
    """The newest checkpoint of a run folder that is whole, None if the folder has none.

    rows: those that are wanted, by default all. Each rank checks the shards that hold its own, and all take the same
    checkpoint. A damaged one is put aside, with a note, if the one before it can take its place. defaults: the values
    of settings that are not stated, as by older checkpoints. Raises FastDMError where only damaged ones are left,
    naming them, and for a checkpoint of other settings, naming those that differ.
    """
    names: list[str] = ranks.exchange([name for name in NAMES if (folder / name).exists()])[0]
    damages: list[tuple[list[str], str]] = []
    if PREVIOUS in names and FILE not in names:
        damages.append(([], f"{folder / FILE} is missing"))
    for name in names:
        path, checkpoint, damage = folder / name, None, ["", ""]
        try:
            checkpoint = read_checkpoint(path, rows)
        except _Damaged as error:
            damage = [str(error), error.path.name]
        found = [each for each in ranks.exchange(damage) if each[0]]
        if found or checkpoint is None:
            damages.append(([name, *(file for _, file in found)], found[0][0]))
            continue
        _check_settings(path, checkpoint.settings, settings, defaults or {})
        for files, why in damages if ranks.first else ():
            aside = [put_aside(folder / file).name for file in dict.fromkeys(files) if (folder / file).exists()]
            kept = f"it is kept as {' and '.join(aside)}, and " if aside else ""
            note(f"{why}; {kept}iteration {checkpoint.iteration} is resumed from {path}")
        return checkpoint
    if damages:
        raise FastDMError(f"{'; '.join(why for _, why in damages)}; nothing is left to resume: start over")
    if not names and ranks.first and (shards := sorted(path.name for path in folder.glob(SHARDS))):
        note(f"{folder / FILE} is missing, without which {shards[0]} is of no use: the run starts over")
    return None


def read_checkpoint(path: Path, rows: range | None = None) -> Checkpoint:
    """The checkpoint whose index, or single file, `path` is; FastDMError, naming the file, where one is damaged.

    rows: those that are wanted, by default all; shards that hold none of them are not looked at.
    """
    if path.suffix != ".json":
        checkpoint = _read_single(path)
        parts = {
            name: tensor if rows is None else tensor[rows.start : rows.stop]
            for name, tensor in checkpoint.tensors.items()
        }
        return dataclasses.replace(checkpoint, tensors=parts)
    iteration, settings, shards = _read_index(path)
    found: dict[str, list[Tensor]] = {}
    for shard in shards:
        first, stop = (
            (shard.first, shard.stop) if rows is None else (max(shard.first, rows.start), min(shard.stop, rows.stop))
        )
        if first < stop:
            for name, tensor in _read_shard(path.parent, iteration, shard).items():
                own = tensor[first - shard.first : stop - shard.first]
                found.setdefault(name, []).append(own if len(own) == len(tensor) else own.clone())
    return Checkpoint(
        iteration, {name: torch.cat(parts) if len(parts) > 1 else parts[0] for name, parts in found.items()}, settings
    )


def _read_index(path: Path) -> tuple[int, str, list[Shard]]:
    """Iteration, settings and shards that an index names."""
    try:
        content = parse_json(path.read_bytes())
        if content["format"] != FORMAT:
            raise ValueError(f"its format is {content['format']!r}, not {FORMAT!r}")
        if content.pop("crc32") != crc32(text=json.dumps(content)):
            raise ValueError("its checksum does not match")
        shards = [Shard(**shard) for shard in content["shards"]]
        if [shard.first for shard in shards] != [0, *(shard.stop for shard in shards[:-1])]:
            raise ValueError("its shards do not follow each other")
        if any(Path(shard.file).name != shard.file for shard in shards):
            raise ValueError("a shard lies elsewhere")
        return content["iteration"], content["settings"], shards
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise _Damaged(path, reason(error)) from error


def _read_shard(folder: Path, iteration: int, shard: Shard) -> dict[str, Tensor]:
    path = folder / shard.file
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if metadata.get("iteration") != str(iteration):
            raise ValueError(f"it is of iteration {metadata.get('iteration')}, not of {iteration}")
        if {name: crc32(tensor) for name, tensor in tensors.items()} != shard.crc32:
            raise ValueError("its checksum does not match")
        if any(len(tensor) != shard.stop - shard.first for tensor in tensors.values()):
            raise ValueError("it has other rows than the index says")
    except (SafetensorError, OSError, TypeError, ValueError) as error:
        raise _Damaged(path, reason(error)) from error
    return tensors


def _read_single(path: Path) -> Checkpoint:
    """A checkpoint of a format before this one."""
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        iteration, settings = int(metadata["iteration"]), metadata["settings"]
        if metadata["format"] not in SINGLE_FORMATS:
            raise ValueError(f"its format is {metadata['format']!r}, not {' or '.join(SINGLE_FORMATS)}")
        by_name = sorted(tensors)
        facts = json.dumps([iteration, settings, [[n, str(tensors[n].dtype), list(tensors[n].shape)] for n in by_name]])
        text = facts if metadata["format"] == SINGLE_FORMATS[0] else ""
        if metadata["crc32"] != str(crc32(*(tensors[name] for name in by_name), text=text)):
            raise ValueError("its checksum does not match")
        if iteration < 0 or not isinstance(parse_json(settings), dict):
            raise ValueError("its iteration or its settings make no sense")
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise _Damaged(path, reason(error)) from error
    return Checkpoint(iteration, tensors, settings)


def _check_settings(path: Path, saved: str, settings: str, defaults: Mapping[str, Any]) -> None:
    before, now = ({**defaults, **json.loads(text)} for text in (saved, settings))
    changes = [
        f"{name} was {before.get(name)!r} and is {now.get(name)!r}"
        for name in {**before, **now}
        if before.get(name) != now.get(name)
    ]
    if changes:
        raise FastDMError(
            f"{path} was created with different settings ({'; '.join(changes)}); resume with the same ones"
        )
