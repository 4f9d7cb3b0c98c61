"""What is in a file: a condensed set, a packed set, a checkpoint, or a result of the public code."""

from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from fastdm.checkpoint import FORMAT as CHECKPOINT_FORMAT
from fastdm.data.packed_file import FORMAT as PACKED_FORMAT
from fastdm.data.packed_file import PackedFile
from fastdm.errors import FastDMError
from fastdm.files import is_zip
from fastdm.synthetic import SyntheticSet, read_public


def inspect(path: str | Path, *, verify: bool = False) -> dict[str, Any]:
    """The facts about a file. verify: also compare the checksums of a packed set (those of the others always are).

    Raises FastDMError, naming the file, for one that is none of these, or damaged.
    """
    path = Path(path)
    if is_zip(path):
        sets, accuracies = read_public(path)
        images, labels = sets[0]
        return {
            "kind": "result of the public code",
            "experiments": len(sets),
            "classes": int(labels.max()) + 1,
            "ipc": len(labels) // (int(labels.max()) + 1),
            "image_shape": tuple(images.shape[1:]),
            "accuracies": accuracies,
        }
    try:
        with safe_open(path, "pt") as tensors:
            metadata = tensors.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise FastDMError(f"{path} is no file of fastdm, or damaged: {error}") from error
    if metadata.get("format") == PACKED_FORMAT:
        packed = PackedFile(path)
        if verify:
            packed.verify()
        return {"kind": "packed data set", **packed.describe()}
    if metadata.get("format") == CHECKPOINT_FORMAT:
        return {"kind": "checkpoint", "iteration": int(metadata["iteration"]), "settings": metadata["settings"]}
    return {"kind": "condensed set", **SyntheticSet.load(path).facts()}
