"""Random numbers and draws in plain PyTorch: the definition of correct."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from ..numerics import DRAW_STREAM, WEIGHT_ROW, fill_weights, weight_rows
from ..table import tables_of

_MASK = 0xFFFFFFFF


def philox(key: Sequence[Tensor | int], counter: Sequence[Tensor | int], rounds: int = 10) -> tuple[Tensor, ...]:
    """Philox 4×32 (Salmon et al., 2011) on words stored in int64 tensors: four words out of two and four."""
    k0, k1 = key
    c0, c1, c2, c3 = counter
    for _ in range(rounds):
        # A product of two 32-bit words wraps in int64, but its 64 bits are right.
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (p1 >> 32) & _MASK ^ c1 ^ k0, p1 & _MASK, (p0 >> 32) & _MASK ^ c3 ^ k1, p0 & _MASK
        k0, k1 = (k0 + 0x9E3779B9) & _MASK, (k1 + 0xBB67AE85) & _MASK
    return cast(tuple[Tensor, ...], (c0, c1, c2, c3))


def random_words(key: Tensor, rows: Tensor, n: int, stream: int) -> Tensor:
    """Return int64 [len(rows), n]: 32-bit words, word j of row r from the counter (step, r, stream, j // 4)."""
    seed, step = key[0], key[1]
    block = torch.arange((n + 3) // 4, device=key.device)
    counter = (step & _MASK, rows[:, None] & _MASK, torch.full_like(block, stream), block)
    words = philox((seed & _MASK, (seed >> 32) & _MASK), counter)
    return torch.stack([w.expand(len(rows), -1) for w in words], -1).flatten(1)[:, :n]


def uniform(key: Tensor, rows: Tensor, n: int, stream: int) -> Tensor:
    """Return float32 [len(rows), n]: the upper 24 bits of each word · 2⁻²⁴."""
    return (random_words(key, rows, n, stream) >> 8).to(torch.float32) * 2.0**-24


def uniform_weights(out: Tensor, key: Tensor, layout: list[int], bounds: list[float], stream: int) -> None:
    """Fill the parts of a buffer; see the public function."""
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
    """Draw the tables [runs, G, 16]; see the public function."""
    return tables_of(uniform(key, rows, numbers, stream), source, rules, runs, choose, one_family)


def draw(key: Tensor, class_offsets: Tensor, n: int, classes: Tensor, replace: bool = False) -> Tensor:
    """Draw n distinct images of each class by Floyd's algorithm; see the public function.

    Floyd's candidate t_i ∈ [0, m − n + i] is replaced by m − n + i where it was taken before. It was taken if an
    earlier candidate has the same value, or if it is the replacement of an earlier candidate i' = t_i − (m − n) that
    was itself replaced. So "replaced" runs along the chain i → i', which log₂ n rounds of pointer jumping resolve
    for all images and classes at once.
    """
    start, size = class_offsets[classes], class_offsets.diff()[classes]
    if replace:
        picked = (random_words(key, classes, n, DRAW_STREAM) * size[:, None]) >> 32
        return picked.sort(dim=1).values + start[:, None]
    i = torch.arange(n, device=key.device)
    limit = (size - n)[:, None] + i
    candidate = (random_words(key, classes, n, DRAW_STREAM) * (limit + 1)) >> 32
    ordered, order = candidate.sort(dim=1, stable=True)
    repeated = torch.zeros_like(ordered, dtype=torch.bool)
    repeated[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    replaced = torch.zeros_like(repeated).scatter_(1, order, repeated)
    link = candidate - (size - n)[:, None]
    link = torch.where((link >= 0) & (link < i), link, i)
    for _ in range((n - 1).bit_length()):
        replaced = replaced | replaced.gather(1, link)
        link = link.gather(1, link)
    return torch.where(replaced, limit, candidate).sort(dim=1).values + start[:, None]
