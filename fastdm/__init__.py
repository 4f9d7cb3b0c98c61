"""Dataset condensation by distribution matching (DM, Zhao & Bilen, WACV 2023), as fast as the hardware allows.

import fastdm
synthetic = fastdm.condense("CIFAR10", ipc=10)
fastdm.evaluate(synthetic, "CIFAR10")
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

from fastdm.version import __version__

if TYPE_CHECKING:
    from fastdm.applications.export import export
    from fastdm.applications.pool import train_pool
    from fastdm.compat import DiffAugment, ParamDiffAug, dm_loss
    from fastdm.condensation.loop import condense
    from fastdm.condensation.settings import Settings
    from fastdm.data.packing import pack
    from fastdm.data.sources import open_dataset
    from fastdm.errors import FastDMError
    from fastdm.evaluation.measure import evaluate
    from fastdm.networks.trained import NetworkPool
    from fastdm.synthetic.initial import random_selection, whole_set
    from fastdm.synthetic.synthetic_set import SyntheticSet

# PyTorch's threads, on which the C++ core computes too, spin for milliseconds after each of their loops; on a busy
# machine others need their cores. Some microseconds are enough. (Heeded only if PyTorch is not loaded yet.)
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

__all__ = [
    "DiffAugment",
    "FastDMError",
    "NetworkPool",
    "ParamDiffAug",
    "Settings",
    "SyntheticSet",
    "__version__",
    "condense",
    "dm_loss",
    "evaluate",
    "export",
    "open_dataset",
    "pack",
    "random_selection",
    "train_pool",
    "whole_set",
]

_HOMES = {
    "DiffAugment": "compat",
    "FastDMError": "errors",
    "NetworkPool": "networks.trained",
    "ParamDiffAug": "compat",
    "Settings": "condensation.settings",
    "SyntheticSet": "synthetic.synthetic_set",
    "condense": "condensation.loop",
    "dm_loss": "compat",
    "evaluate": "evaluation.measure",
    "export": "applications.export",
    "open_dataset": "data.sources",
    "pack": "data.packing",
    "random_selection": "synthetic.initial",
    "train_pool": "applications.pool",
    "whole_set": "synthetic.initial",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for: torch takes seconds, and `fastdm --help` needs none of it."""
    if name not in _HOMES:
        raise AttributeError(f"module 'fastdm' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"fastdm.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
