"""What people look at first in a run folder or in one of its files: read from headers and text, without torch."""

import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastdm.errors import FastDMError

CHECKPOINTS = (
    "checkpoint.json",
    "checkpoint-previous.json",
    "checkpoint.safetensors",
    "checkpoint-previous.safetensors",
)
SET = "synthetic.safetensors"
LOG = "log.jsonl"
EVALUATION = "evaluation.json"
_MOST_HEADER = 100_000_000  # safetensors' own limit
_LAST_LINES = 1 << 16


def summarise_run(folder: str | Path) -> dict[str, Any]:
    """How far a run is, what it makes, where its loss stands, and what was measured of its set.

    Files that cannot be read are named as damaged; checksums are not compared: `fastdm inspect` does that for single
    files. Raises FastDMError, naming the folder, for
    one that holds no run.
    """
    folder = Path(folder)
    settings = _json(folder / "settings.json")
    if not isinstance(settings, dict):
        raise FastDMError(f"{folder} is not a run folder: it has no settings.json that could be read")
    kept = {name: _iteration(folder / name) for name in CHECKPOINTS}
    checkpoints = [iteration for iteration in kept.values() if iteration is not None]
    about, last, evaluation = _about(folder / SET), _last_loss(folder / LOG), _json(folder / EVALUATION)
    accuracies = evaluation.get("accuracies") if isinstance(evaluation, dict) else None
    total = settings.get("iterations")
    facts: dict[str, Any] = {
        "kind": "run",
        "state": "complete" if about is not None and checkpoints[:1] == [total] else "not complete",
        "iterations": total,
        "checkpoint": checkpoints[0] if checkpoints else None,
    }
    if last is not None:
        facts |= {"logged": last["iteration"] + 1, "loss": last["loss"]}
    if about is not None:
        names = about.get("class_names")
        facts |= {"dataset": about.get("dataset"), "classes": len(names) if isinstance(names, list) else None}
    if isinstance(accuracies, dict):
        facts["accuracies"] = accuracies
    found = {**kept, SET: about, EVALUATION: accuracies}
    if damaged := [name for name, read in found.items() if read is None and (folder / name).exists()]:
        facts["damaged"] = damaged
    facts["settings"] = settings
    facts["files"] = sorted(path.name for path in folder.iterdir())
    return facts


def summarise_set(path: str | Path) -> dict[str, Any] | None:
    """What the header of a condensed set says; None for any other file."""
    header = read_header(Path(path))
    about = _about(Path(path))
    if header is None or about is None:
        return None
    images = header.get("images")
    shape = images.get("shape") if isinstance(images, dict) else None
    names = about.get("class_names")
    if not (isinstance(shape, list) and len(shape) == 4 and isinstance(names, list) and names):
        return None
    facts = {"kind": "condensed set", "dataset": about.get("dataset"), "classes": len(names)}
    facts |= {
        "ipc": shape[0] // len(names),
        "partition": about.get("partition", 1),
        "soft_labels": "soft_labels" in header,
    }
    facts |= {"image_shape": shape[1:]}
    facts |= {name: about.get(name) for name in ("mean", "std", "class_names", "settings")}
    return {**facts, "fastdm": about.get("version")}


def read_header(path: Path) -> dict[str, Any] | None:
    """The JSON header of a safetensors file, None for any other file; FastDMError where it cannot be read."""
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise FastDMError(f"{path} is not a regular file")
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(_MOST_HEADER, os.fstat(file.fileno()).st_size):
                return None
            header = json.loads(file.read(length))
    except OSError as error:
        raise FastDMError(f"{path} cannot be read: {error.strerror}") from error
    except (struct.error, ValueError, RecursionError):
        return None
    return header if isinstance(header, dict) else None


def _metadata(path: Path) -> Mapping[str, Any]:
    header = read_header(path) if path.exists() else None
    metadata = (header or {}).get("__metadata__")
    return metadata if isinstance(metadata, dict) else {}


def _about(path: Path) -> dict[str, Any] | None:
    """What a condensed set says of itself."""
    try:
        about = json.loads(_metadata(path).get("about", "null"))
    except (TypeError, ValueError, RecursionError):
        return None
    return about if isinstance(about, dict) else None


def _iteration(path: Path) -> int | None:
    try:
        index = _json(path) if path.suffix == ".json" else _metadata(path)
        return int(index["iteration"])
    except (KeyError, TypeError, ValueError):
        return None


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None


def _last_loss(path: Path) -> dict[str, Any] | None:
    """The last whole line of a log."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _LAST_LINES))
            lines = file.read().splitlines()
    except OSError:
        return None
    for line in reversed(lines):
        try:
            entry = json.loads(line)
            if isinstance(entry["iteration"], int) and isinstance(entry["loss"], float):
                return dict(entry)
        except (ValueError, TypeError, KeyError, RecursionError):
            continue
    return None
