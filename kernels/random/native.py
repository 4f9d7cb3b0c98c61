"""Random numbers and draws through the C++ extension."""

import torch
from torch import Tensor

from ..extension import load


def uniform(key: Tensor, rows: Tensor, n: int, stream: int) -> Tensor:
    out = torch.empty(len(rows), n, dtype=torch.float32)
    seed, step = key.tolist()
    load().uniform(seed, step, rows.contiguous(), stream, out)
    return out


def draw(key: Tensor, class_offsets: Tensor, n: int, classes: Tensor, replace: bool = False) -> Tensor:
    out = torch.empty(len(classes), n, dtype=torch.int64)
    seed, step = key.tolist()
    load().draw(seed, step, class_offsets.contiguous(), classes.contiguous(), out, replace)
    return out
