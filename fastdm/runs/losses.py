"""The losses of a run on their way from the device to the host, and with several ranks from all of them to each."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from fastdm.system.ranks import Ranks, Sums

LAG = 4
"""Iterations after which a rank waits for the sum of an iteration's losses: so far apart may ranks be."""


class Asked(NamedTuple):
    """What some rank has asked all to do after this iteration."""

    stop: bool = False
    save: bool = False


class Losses:
    """Losses that the host has not read yet. One rank's stay on the device until they are; those of several are summed
    in the background, and with them what the ranks ask of each other."""

    def __init__(self, ranks: Ranks) -> None:
        self._sums = ranks.sums() if ranks.size > 1 else None
        self._unread: list[Tensor] = []
        self._names: list[str] = []

    def add(self, loss: Tensor, parts: Mapping[str, Tensor], *, stop: bool, save: bool) -> Asked:
        """Add those of an iteration, and what this rank asks for until it gets it; gives what was asked for `LAG`
        iterations ago."""
        self._names = ["loss", *parts]
        if self._sums is None:
            self._unread.append(torch.stack([loss, *parts.values()]))
            return Asked(stop, save)
        asks = [torch.full_like(loss, each) for each in (stop, save)]
        self._sums.add(torch.stack([loss, *parts.values(), *asks]))
        return self._take(self._sums) if len(self._sums) > LAG else Asked()

    def _take(self, sums: Sums) -> Asked:
        row = sums.take()
        self._unread.append(row[:-2])
        return Asked(*(bool(each) for each in row[-2:]))

    def wait(self) -> bool:
        """Wait for all sums, as all ranks do after the same iteration: the log is to hold what a checkpoint holds.
        Gives whether any rank has asked to stop meanwhile, which with frequent checkpoints is heard nowhere else."""
        stop = False
        while self._sums:
            stop |= self._take(self._sums).stop
        return stop

    def read(self, done: int) -> tuple[int, list[dict[str, float]]]:
        """The unread losses by name, and the number of the iteration that the first are of; `done` are complete."""
        rows = torch.stack(self._unread).tolist() if self._unread else []
        self._unread.clear()
        on_their_way = 0 if self._sums is None else len(self._sums)
        return done - on_their_way - len(rows), [dict(zip(self._names, row, strict=True)) for row in rows]
