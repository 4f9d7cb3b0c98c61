"""How a run goes: what it writes, shows and uses, as opposed to what it computes."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor

from fastdm.errors import FastDMError, one_of, real_number, whole_number
from fastdm.runs.events import check_installed
from fastdm.runs.recording import check_chosen
from fastdm.synthetic.synthetic_set import SyntheticSet
from fastdm.system.files import user_path


class Observer(Protocol):
    """Looks at the set during a run; it changes nothing."""

    def wants(self, iteration: int) -> bool:
        """Whether to look after so many iterations; a run that is resumed asks about those that it has done, too, since
        it may have been stopped before the observer had seen them."""
        ...

    def look(self, iteration: int, synthetic: SyntheticSet) -> None:
        """Called with the set as it is after so many iterations."""
        ...


@dataclass(frozen=True)
class RunOptions:
    """The options of `fastdm.condense` that do not change its result beyond rounding; it describes them.

    observer: looks at the set during the run. config: kept in the run folder, as config.yaml.
    """

    backend: str = "auto"
    chunk_memory: int | None = None
    compile: bool = False
    save_path: str | Path | None = None
    resume: bool = False
    overwrite: bool = False
    save_every: int = 1000
    save_minutes: float | None = None
    picture_every: int = 1000
    profile: range | None = None
    callback: Callable[[int, float, Tensor], None] | None = None
    observer: Observer | None = None
    progress: bool = False
    verbose: bool = False
    tensorboard: bool = False
    config: str | None = None

    def check(self, iterations: int) -> None:
        """Raise FastDMError for options that a run of so many iterations cannot follow."""
        for name, every in (("save_every", self.save_every), ("picture_every", self.picture_every)):
            whole_number(name, every, 1)
        if self.save_minutes is not None and not real_number("save_minutes", self.save_minutes) > 0:
            raise FastDMError(f"save_minutes is {self.save_minutes}; it must be above 0")
        if self.chunk_memory is not None and math.isnan(real_number("chunk_memory", self.chunk_memory)):
            raise FastDMError("chunk_memory is nan; it must be a number of bytes")
        for name in ("compile", "resume", "overwrite", "progress", "verbose", "tensorboard"):
            one_of(name, getattr(self, name), (False, True))
        if self.callback is not None and not callable(self.callback):
            raise FastDMError(f"callback is a {type(self.callback).__name__}; it must be a function, or None")
        if self.resume and self.overwrite:
            raise FastDMError("resume continues a run, and overwrite starts over: ask for one of them")
        if self.profile is not None:
            check_chosen(self.profile, iterations, self.save_path)
        if self.tensorboard:
            if self.save_path is None:
                raise FastDMError("tensorboard needs a save_path, under which it writes")
            check_installed()

    @property
    def folder(self) -> Path | None:
        """The run folder, with `~` expanded."""
        return None if self.save_path is None else user_path(self.save_path)
