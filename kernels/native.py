"""The ops that the C++ extension implements on the CPU, with the signatures of ``reference.py``.

A function of ``fastdm._native`` fills the buffers that it is handed; every buffer is a contiguous CPU tensor. What the
extension does not have (or an installation without it) stays with the reference.
"""

import importlib
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor


@cache
def _native() -> Any:
    """Return the extension, or None in an installation without it."""
    try:
        return importlib.import_module("fastdm._native")
    except ModuleNotFoundError:
        return None


def find(name: str) -> Callable[..., Any] | None:
    """Return this module's form of an op if the extension has it."""
    return globals().get(name) if hasattr(_native(), name) else None


def uniform(key: Tensor, rows: Tensor, n: int, stream: int) -> Tensor:
    out = torch.empty(len(rows), n)
    seed, step = key.tolist()
    _native().uniform(seed, step, rows.contiguous(), stream, out)
    return out


def draw(key: Tensor, class_offsets: Tensor, n: int, classes: Tensor) -> Tensor:
    out = torch.empty(len(classes), n, dtype=torch.int64)
    seed, step = key.tolist()
    _native().draw(seed, step, class_offsets.contiguous(), classes.contiguous(), out)
    return out
