"""Random numbers and draws through the C++ extension."""

import torch
from torch import Tensor

from ..extension import call
from ..numerics import WEIGHT_ROW, fill_weights, weight_rows
from ..table import tables_of


def uniform(key: Tensor, rows: Tensor, n: int, stream: int) -> Tensor:
    out = torch.empty(len(rows), n, dtype=torch.float32)
    call("uniform", *_seed_and_step(key), rows.contiguous(), stream, out)
    return out


def uniform_weights(out: Tensor, key: Tensor, layout: list[int], bounds: list[float], stream: int) -> None:
    fill_weights(out, uniform(key, weight_rows(layout, key.device), WEIGHT_ROW, stream), layout, bounds)


def draw_tables(
    key: Tensor,
    rows: Tensor,
    source: Tensor,
    rules: Tensor,
    numbers: int,
    runs: int,
    choose: bool,
    one_family: bool,
    stream: int,
) -> Tensor:
    return tables_of(uniform(key, rows, numbers, stream), source, rules, runs, choose, one_family)


def draw(key: Tensor, class_offsets: Tensor, n: int, classes: Tensor, replace: bool = False) -> Tensor:
    out = torch.empty(len(classes), n, dtype=torch.int64)
    call("draw", *_seed_and_step(key), class_offsets.contiguous(), classes.contiguous(), out, replace)
    return out


def _seed_and_step(key: Tensor) -> tuple[int, int]:
    """Return the numbers of a key; of the step, the lower 32 bits, a word of philox's counter."""
    seed, step = key.tolist()
    return seed, step & 0xFFFFFFFF
