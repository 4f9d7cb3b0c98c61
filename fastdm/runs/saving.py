"""Write checkpoints in the background, all ranks together: a run pauses only while its state is copied."""

import dataclasses
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from fastdm.errors import FastDMError
from fastdm.runs.checkpoint import Shard, write_index, write_shard
from fastdm.system.checks import all_finite
from fastdm.system.files import reason
from fastdm.system.ranks import Ranks

TOPIC = "checkpoints"
"""What ranks exchange in the background, apart from what they exchange in the foreground."""


@dataclass(frozen=True)
class State:
    """What decides how a run goes on: tensors by name, of which this rank has some rows, and all ranks have all.

    rows: the numbers of this rank's rows; name: what a row is, in words; is_whole: whether the tensors are those
    between two iterations, of which one that an error has cut short may have changed some rows.
    """

    tensors: Mapping[str, Tensor]
    rows: range
    name: Callable[[int], str]
    is_whole: Callable[[], bool] = lambda: True

    def copy(self) -> "State":
        """The state as it is now, on the host, where the run does not change it."""
        copied = {
            name: torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu").copy_(tensor.detach())
            for name, tensor in self.tensors.items()
        }
        return dataclasses.replace(self, tensors=copied)

    def spoilt(self) -> str:
        """What the first row is that holds a number that is not finite; "" if there is none."""
        for tensor in self.tensors.values():
            if not all_finite(tensor):
                rows = tensor.isfinite().flatten(1).all(1)
                return self.name(self.rows[int((~rows).nonzero()[0])])
        return ""


class CannotGoOn(FastDMError):
    """The images are spoilt, or the run folder can no longer be written: a run has nothing to save."""


class NotFinite(FastDMError):
    """What was to be saved has numbers that are not finite."""


class CannotWrite(FastDMError):
    """The message is why a checkpoint could not be written, in a few words."""


class Saving:
    """The checkpoints of a run folder, as the ranks write them: each its shard, then the first one the index.

    saved: the iteration of the newest one that is whole, None before there is one.
    """

    def __init__(self, folder: Path, settings: str, ranks: Ranks) -> None:
        self._folder = folder
        self._settings = settings
        self._ranks = ranks
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[None] | None = None
        self.saved: int | None = None
        self.last: int | None = None  # the iteration of the newest one that has begun
        self.began = time.monotonic()

    def begin(self, iteration: int, copied: State) -> None:
        """Write a copied state in the background, once the one before is written."""
        self.wait()
        self.last, self.began = iteration, time.monotonic()
        self._pending = self._thread.submit(self._write, iteration, copied)

    def look(self) -> None:
        """Raise what went wrong in the background, if anything did."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Wait until what has begun is written, or raise why it was not."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """End the thread, whatever becomes of what it is about."""
        self._thread.shutdown()

    def _write(self, iteration: int, state: State) -> None:
        spoilt = self._first(state.spoilt())
        if spoilt:
            raise NotFinite(spoilt)
        shard: Shard | None = None
        try:
            place = self._ranks.rank, self._ranks.size
            shard, trouble = write_shard(self._folder, iteration, state.tensors, state.rows, place), ""
        except (OSError, SafetensorError) as error:
            trouble = reason(error) + self._who
        self._check(trouble)
        described = self._ranks.exchange(None if shard is None else dataclasses.asdict(shard), TOPIC)
        try:
            if self._ranks.first:
                write_index(self._folder, iteration, self._settings, [Shard(**each) for each in described])
        except OSError as error:
            trouble = reason(error) + self._who
        self._check(trouble)
        self.saved = iteration

    def _check(self, trouble: str) -> None:
        """Raise what is in the way of any rank."""
        if found := self._first(trouble):
            raise CannotWrite(found)

    def _first(self, text: str) -> str:
        """The first text of all ranks that says something."""
        return next((each for each in self._ranks.exchange(text, TOPIC) if each), "")

    @property
    def _who(self) -> str:
        """Which rank this is, where there are several."""
        return f" at rank {self._ranks.rank}" if self._ranks.size > 1 else ""
