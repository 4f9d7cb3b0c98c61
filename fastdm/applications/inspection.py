"""What is in a file: a condensed set, a packed set, a checkpoint, or a result of the public code."""

from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from fastdm.data.packed.format import FORMAT as PACKED_FORMAT
from fastdm.data.packed.format import PackedFile
from fastdm.errors import FastDMError
from fastdm.networks.trained import FORMAT as NETWORKS_FORMAT
from fastdm.networks.trained import NetworkPool
from fastdm.runs.checkpoint import FORMAT as CHECKPOINT_FORMAT
from fastdm.synthetic.public_file import read_public
from fastdm.synthetic.synthetic_set import SyntheticSet
from fastdm.system.files import is_zip


def inspect(path: str | Path, *, verify: bool = False) -> dict[str, Any]:
    """What a file holds. verify: also compare the checksums of a packed set (those of the others always are).

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
        raise FastDMError(f"{path} is not a file of fastdm, or is damaged: {error}") from error
    if metadata.get("format") == PACKED_FORMAT:
        packed = PackedFile(path)
        if verify:
            packed.verify()
        return {"kind": "packed data set", **packed.summary()}
    if metadata.get("format") == CHECKPOINT_FORMAT:
        return {"kind": "checkpoint", "iteration": int(metadata["iteration"]), "settings": metadata["settings"]}
    if metadata.get("format") == NETWORKS_FORMAT:
        return {"kind": "pool of trained networks", **NetworkPool.load(path).summary()}
    return {"kind": "condensed set", **SyntheticSet.load(path).summary()}
