"""The file of a condensed set: safetensors with one tensor, and all that is said of it under a checksum."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from fastdm.errors import FastDMError
from fastdm.system.checks import check_regular, parse_json
from fastdm.system.files import crc32, writing

FORMAT = "fastdm-synthetic-1"
ABOUT = ("class_names", "mean", "std", "dataset", "settings", "version")
"""What is said of the images, as a JSON object."""

# No other keys: one that is misspelt by a flipped bit must not pass for a file without it.
_KEYS = frozenset(("format", "about", "crc32", "checksum"))
_TEXTS = ("network", "strategy", "init", "aug_mode", "precision", "small_classes", "method")


def is_safetensors(path: Path) -> bool:
    """Whether a regular file begins as safetensors do; FastDMError if it cannot be read."""
    check_regular(path)
    with path.open("rb") as file:
        start = file.read(9)
    return len(start) == 9 and start[8:] == b"{" and int.from_bytes(start[:8], "little") <= path.stat().st_size - 8


def write_set(path: str | Path, images: Tensor, about: Mapping[str, Any], soft_labels: Tensor | None = None) -> None:
    """Write images, `about`, which has the keys `ABOUT` and may have `partition`, and soft labels if there are any."""
    text = json.dumps(dict(about))
    tensors = {"images": images} | ({} if soft_labels is None else {"soft_labels": soft_labels})
    checksum = _checksum(tensors, text)
    metadata = {"format": FORMAT, "about": text, "crc32": str(crc32(images)), "checksum": checksum}
    with writing(path) as temporary:
        save_file(tensors, temporary, metadata)


def read_set(path: Path) -> tuple[Tensor, dict[str, Any], Tensor | None]:
    """What `write_set` wrote, each value of the type that it should have.

    Files of version 0.1 have a checksum of the images alone. Raises one of many errors for what is not such a file.
    """
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
        if metadata.get("format") != FORMAT:
            raise FastDMError(f"it is not of this version of fastdm ({FORMAT})")
        if sorted(file.keys()) not in (["images"], ["images", "soft_labels"]) or not metadata.keys() <= _KEYS:
            raise FastDMError(
                f"it must hold the tensor images and the metadata {', '.join(sorted(_KEYS))}, and besides at most "
                "soft_labels"
            )
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    images = tensors["images"]
    text, expected = metadata.get("about", "{}"), {"crc32": str(crc32(images))}
    if "checksum" in metadata:
        expected["checksum"] = _checksum(tensors, text)
    if any(metadata.get(name) != value for name, value in expected.items()):
        raise FastDMError("its checksum does not match")
    return images, check_about(parse_json(text)), tensors.get("soft_labels")


def check_writable(about: Mapping[str, Any]) -> None:
    """Raise FastDMError for what JSON does not hold, or `check_about` would not read again."""
    try:
        text = json.dumps(dict(about))
    except (TypeError, ValueError) as error:
        raise FastDMError(
            f"the settings of a synthetic set must be texts, numbers, and lists or dictionaries of them: {error}"
        ) from error
    try:
        check_about(parse_json(text))
    except (FastDMError, ValueError) as error:
        raise FastDMError(f"the synthetic set cannot be written: {error}") from error


def check_about(about: Any) -> dict[str, Any]:
    """What a file says of its images; FastDMError for values of wrong types."""
    if not isinstance(about, dict):
        raise FastDMError("its description is not a JSON object")
    if about.keys() - {"partition"} != set(ABOUT):
        raise FastDMError(
            f"it must state {', '.join(sorted(ABOUT))}, but states {', '.join(sorted(about)) or 'nothing'}"
        )
    if not (isinstance(about["dataset"], str) and isinstance(about["settings"], dict)):
        raise FastDMError("its dataset must be a name, and its settings values by name")
    if not isinstance(about["version"], str):
        raise FastDMError("its version must be a text")
    for name in ("class_names", "mean", "std"):
        if not isinstance(about[name], list):
            raise FastDMError(f"its {name} must be a list")
    for name in _TEXTS:
        if not isinstance(about["settings"].get(name), str | None):
            raise FastDMError(f"its setting {name} is {str(about['settings'][name])[:40]}; it must be a text")
    return {name: tuple(value) if isinstance(value, list) else value for name, value in about.items()}


def _checksum(tensors: Mapping[str, Tensor], about: str) -> str:
    """CRC-32 of the tensors' bytes, their dtypes and shapes, and the description."""
    ordered = [tensors[name] for name in sorted(tensors)]
    facts = [fact for tensor in ordered for fact in (str(tensor.dtype), list(tensor.shape))]
    return str(crc32(*ordered, text=json.dumps([FORMAT, *facts, about])))
