"""What is in a file: a condensed set, a packed set, a checkpoint, or sets in the public code's format."""

from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from fastdm.data.packed.format import FORMAT as PACKED_FORMAT
from fastdm.data.packed.format import PackedFile
from fastdm.errors import FastDMError
from fastdm.networks.trained import FORMAT as NETWORKS_FORMAT
from fastdm.networks.trained import NetworkPool
from fastdm.runs.checkpoint import FORMAT as CHECKPOINT_FORMAT
from fastdm.runs.checkpoint import SINGLE_FORMATS, read_checkpoint
from fastdm.synthetic.public_file import PublicFile, read_public
from fastdm.synthetic.set_file import is_safetensors
from fastdm.synthetic.synthetic_set import SyntheticSet
from fastdm.system.checks import parse_json
from fastdm.system.files import user_path


def inspect(path: str | Path, *, verify: bool = False) -> dict[str, Any]:
    """What a file holds.

    verify: also compare the checksums of the images of a packed set, and of the tensors of a checkpoint of version 0.1;
    those of all that a packed set says of its images, and of what is smaller, are compared always.

    Raises FastDMError, naming the file, for one that is none of these, or damaged.
    """
    path = user_path(path)
    if path.suffix == ".json":
        _check_index(path)
        checkpoint = read_checkpoint(path)
        return {"kind": "checkpoint", "iteration": checkpoint.iteration, "settings": parse_json(checkpoint.settings)}
    if not is_safetensors(path):
        return _public_facts(read_public(path))
    try:
        with safe_open(path, "pt") as tensors:
            metadata = tensors.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise FastDMError(f"{path} is not a file of fastdm, or is damaged: {error}") from error
    if metadata.get("format") == PACKED_FORMAT:
        packed = PackedFile(path)
        if verify:
            packed.verify()
        return {"kind": "packed data set", **packed.summary()}
    if metadata.get("format") == CHECKPOINT_FORMAT:
        raise FastDMError(f"{path} is a part of a checkpoint: give {path.with_name('checkpoint.json')}, which names it")
    if metadata.get("format") in SINGLE_FORMATS:
        return _checkpoint_facts(path, metadata, verify)
    if metadata.get("format") == NETWORKS_FORMAT:
        return {"kind": "pool of trained networks", **NetworkPool.load(path).summary()}
    return {"kind": "condensed set", **SyntheticSet.load(path).summary()}


def _check_index(path: Path) -> None:
    """Raise FastDMError for JSON that is whole, but was never a checkpoint's index."""
    try:
        content = parse_json(path.read_bytes())
    except (OSError, ValueError):
        return  # which reading it as a checkpoint says
    if not (isinstance(content, dict) and {"format", "shards", "iteration"} & content.keys()):
        raise FastDMError(f"{path} is not a checkpoint; fastdm inspect knows no other JSON")


def _public_facts(file: PublicFile) -> dict[str, Any]:
    images, labels = file.sets[0]
    facts: dict[str, Any] = {"kind": _LAYOUTS[file.layout], "experiments": len(file.sets)}
    if labels is not None:
        classes = labels.shape[1] if labels.ndim == 2 else len(labels.unique())
        facts |= {"classes": classes, "ipc": len(images) // classes}
    else:
        facts["images"] = len(images)
    facts["image_shape"] = tuple(images.shape[1:])
    return facts | {"accuracies": file.accuracies} | file.about


def _checkpoint_facts(path: Path, metadata: dict[str, str], verify: bool) -> dict[str, Any]:
    if verify:
        checkpoint = read_checkpoint(path)
        return {"kind": "checkpoint", "iteration": checkpoint.iteration, "settings": parse_json(checkpoint.settings)}
    try:
        iteration, settings = int(metadata["iteration"]), parse_json(metadata["settings"])
        if not isinstance(settings, dict):
            raise ValueError("its settings are not a JSON object")
    except (KeyError, ValueError) as error:
        raise FastDMError(f"the checkpoint {path} is damaged: {error}") from error
    return {"kind": "checkpoint", "iteration": iteration, "settings": settings}


_LAYOUTS = {
    "public": "condensed sets in the public code's format",
    "mtt": "images of MTT",
    "idc": "images and labels of IDC",
}
