"""A run on disk: its folder, log, pictures and checkpoints. The loop reports to it; it changes nothing."""

import json
import math
import shutil
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from fastdm.errors import FastDMError
from fastdm.runs.about import FILE as ABOUT
from fastdm.runs.about import About
from fastdm.runs.checkpoint import NAMES, SHARDS, Checkpoint, load_checkpoint
from fastdm.runs.events import FOLDER as EVENTS
from fastdm.runs.events import Events
from fastdm.runs.log import FILE as LOG
from fastdm.runs.log import append_losses, cut_log
from fastdm.runs.losses import Losses
from fastdm.runs.options import RunOptions
from fastdm.runs.saving import CannotGoOn, CannotWrite, NotFinite, Saving, State
from fastdm.synthetic.synthetic_set import SyntheticSet
from fastdm.system.checks import parse_json
from fastdm.system.files import atomic_write, locked, make_folder, reason, remove_unfinished
from fastdm.system.progress import Progress
from fastdm.system.ranks import ALONE, Ranks
from fastdm.system.signals import deferred
from fastdm.system.text import size_text

SETTINGS, CONFIG, SET, PICTURE = "settings.json", "config.yaml", "synthetic.safetensors", "synthetic.png"
EVALUATION, EVALUATIONS, BASELINES = "evaluation.json", "evaluations.jsonl", "baselines.json"
"""What was measured of the set, of those on its way, and of others to compare with: written by whoever evaluates, and
of no use to another run."""

PICTURES = "iteration_*.png"
LOCK = ".lock"
MESSAGES = "messages.txt"
"""What other libraries print while they compile or profile the run."""

SECONDS_BETWEEN_READS = 0.5
"""Losses stay on the device and are read together this often, so that an iteration never waits for the host."""


class Run:
    """Follows a condensation of `total` iterations, as a context manager: leaving it early keeps a checkpoint.

    state: what decides how the run continues; it is saved, and filled when the run is resumed. synthetic: gives the set
    as it stands, on the CPU of every rank. grid: writes a picture of it at the first rank. settings: the content of
    settings.json. resume_key: what a checkpoint must have been made with to be resumed; resume_defaults: what holds for
    one that does not say. Without a save_path nothing is written; else no other process can use the folder meanwhile.

    Where several ranks share the run, the first one alone prints and writes, but for the shards of checkpoints. Each
    rank hears the sum of an iteration's losses `LAG` iterations later, and with it whether any rank has got a signal or
    the time for a checkpoint has come: then all of them save, or stop, after the same iteration.
    """

    def __init__(
        self,
        state: State,
        synthetic: Callable[[], SyntheticSet],
        grid: Callable[[Path], None],
        total: int,
        settings: Mapping[str, Any],
        resume_key: Mapping[str, Any],
        options: RunOptions,
        *,
        resume_defaults: Mapping[str, Any] | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        self.options = options
        self.first_iteration = 0
        self._ranks = ranks
        self._folder = folder = options.folder
        self._writes = ranks.first and folder is not None
        self._state = state
        self._synthetic = synthetic
        self._grid = grid
        self._settings = dict(settings)
        self._resume_key = json.dumps(resume_key)
        self._resume_defaults = resume_defaults
        self._saving = None if folder is None else Saving(folder, self._resume_key, ranks)
        self._losses = Losses(ranks)
        self._pauses: dict[int, float] = {}  # seconds that copying took, by iteration
        self._signals: Sequence[tuple[int, object]] = ()
        self._held = ExitStack()
        self._total = total
        self._notes: list[str] = []
        self._events: Events | None = None
        with ExitStack() as resources:  # closed here if anything goes wrong, else when the run is left
            if folder is not None:
                self._open(folder, resources)
            for note in () if options.progress or not ranks.first else self._notes:
                warnings.warn(note, stacklevel=4)
            self._resources = resources.pop_all()
        self._done = self.first_iteration
        self._progress = Progress("condense", total, start=self._done) if options.progress and ranks.first else None
        self._began = self._read_at = time.monotonic()

    def _open(self, folder: Path, resources: ExitStack) -> None:
        if self._writes:
            # Two checkpoints, one being written, and the set with its pictures.
            _prepare(folder, needed=4 * self._ranks.size * sum(each.nbytes for each in self._state.tensors.values()))
            resources.enter_context(locked(folder / LOCK, f"the run folder {folder}"))
            remove_unfinished(folder)
        self._ranks.exchange(None)  # now there is a folder
        if self._saving is not None:
            resources.callback(self._saving.close)
        with self._written():
            self._begin(folder)
            if self.options.tensorboard and self._writes:
                self._events = resources.enter_context(closing(Events(folder, self.first_iteration or None)))
        self._ranks.exchange(None)

    def _begin(self, folder: Path) -> None:
        if self.options.resume:
            checkpoint = load_checkpoint(
                folder,
                self._resume_key,
                self._state.rows,
                defaults=self._resume_defaults,
                note=self._notes.append,
                ranks=self._ranks,
            )
            if checkpoint is not None:
                if checkpoint.iteration > self._total:
                    raise FastDMError(
                        f"{folder} has done {checkpoint.iteration} iterations already, more than {self._total}; "
                        "resume it with at least as many"
                    )
                self.first_iteration = checkpoint.iteration
                self._restore(checkpoint)
        elif self._writes and not self.options.overwrite and any((folder / name).exists() for name in (*NAMES, SET)):
            raise FastDMError(
                f"{folder} already holds a run: resume it, overwrite it, or choose another folder (--resume, "
                "--overwrite, --save_path)"
            )
        if not self._writes:
            return
        if self._saved is None:
            if not self.options.overwrite:
                self._check_own(folder)
            _remove_run(folder)
        with atomic_write(folder / SETTINGS) as temporary:  # first, since they tell whose the others are
            temporary.write_text(json.dumps(self._settings, indent=2) + "\n", encoding="utf-8")
        _remove_later(folder, self.first_iteration, self._notes.append)
        if self.options.config is not None:
            with atomic_write(folder / CONFIG) as temporary:
                temporary.write_text(self.options.config, encoding="utf-8")

    def _check_own(self, folder: Path) -> None:
        """What a run would remove or replace must be that of a run before, and no finished set."""
        if (folder / SET).exists():
            raise FastDMError(
                f"{folder} holds a finished set, but no checkpoint to resume: overwrite it, or choose another folder "
                "(--overwrite, --save_path)"
            )
        found = [path for path in (*_files(folder), folder / SETTINGS) if path.exists()]
        try:
            settings = parse_json((folder / SETTINGS).read_bytes())
            own = isinstance(settings, dict) and settings.keys() <= self._settings.keys()
        except (OSError, ValueError):
            own = False
        if found and not own:
            raise FastDMError(
                f"{folder} holds {found[0].relative_to(folder)}, which would be replaced and is of no run: choose "
                "another folder, or overwrite it (--save_path, --overwrite)"
            )

    def _restore(self, checkpoint: Checkpoint) -> None:
        for name, tensor in self._state.tensors.items():
            saved = checkpoint.tensors.get(name)
            if saved is None or (saved.shape, saved.dtype) != (tensor.shape, tensor.dtype):
                raise FastDMError(
                    f"the checkpoint in {self._folder} holds no {name} of {tensor.dtype} {list(tensor.shape)}; "
                    "start without it"
                )
            tensor.copy_(saved)
        if self._saving is not None:
            self._saving.saved = self._saving.last = checkpoint.iteration

    @property
    def _saved(self) -> int | None:
        """The iteration of the newest checkpoint that is whole."""
        return None if self._saving is None else self._saving.saved

    def describe(self, about: About) -> None:
        """Keep in the folder what the run is made of, and later what it took."""
        if self._folder is not None and self._writes:
            with self._written():
                about.write(self._folder)

    def __enter__(self) -> "Run":
        if self._progress is not None:
            self._progress.__enter__()
        for note in self._notes:
            self.say(note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held.__exit__(kind, error, trace)
        if error is not None:
            self._ranks.end(error)  # before this one waits for the others, as for a checkpoint that has begun
        with deferred(), self._resources:
            if self._progress is not None:
                self._progress.__exit__(kind, error, trace)
            # The checkpoint before is kept where a loss has spoilt the images, a disk is full, or an error came in the
            # midst of an iteration. Ranks that have not agreed to stop are at different iterations.
            if error is not None and not isinstance(error, CannotGoOn):
                if self._ranks.size == 1:
                    if self._state.is_whole():
                        self._read_losses()
                        if self._done > 0:
                            self._save()
                    self._saved_now()
                if self._saved is not None:
                    error.add_note(f"iteration {self._saved} is saved in {self._folder}")

    def iterations(self) -> range:
        """The remaining iterations. Timing starts here, excluding setup."""
        self._began = time.monotonic()
        if self._progress is not None:
            self._progress.start_clock()
        if self._ranks.size > 1:
            self._signals = self._held.enter_context(deferred())
        return range(self.first_iteration, self._total)

    def undivided(self) -> AbstractContextManager[object]:
        """A block that no signal interrupts: an iteration that is half done could not be resumed. Where ranks stop
        together, no signal interrupts anything until they do."""
        return deferred() if self._ranks.size == 1 else nullcontext()

    def after(self, iteration: int, loss: Tensor, parts: Mapping[str, Tensor] | None = None) -> None:
        """Iteration number `iteration` is complete, with this loss, and what it consists of: scalars on the device.

        A loss that is not finite is noticed when it is read, at most `SECONDS_BETWEEN_READS` or one checkpoint later,
        with several ranks `LAG` iterations after that, on all of them at the same iteration.
        """
        self._done = iteration + 1
        is_time = self._ranks.first and self._is_time()
        asked = self._losses.add(loss, parts or {}, stop=bool(self._signals), save=is_time)
        save = self._done % self.options.save_every == 0 or asked.save
        picture = self._done % self.options.picture_every == 0
        stop = asked.stop
        copied = self._copy() if save or stop else None
        if save or stop or self._done == self._total:
            stop |= self._losses.wait()
        due = time.monotonic() - self._read_at >= SECONDS_BETWEEN_READS
        if save or picture or stop or self._done == self._total or due or self._ranks.size > 1:
            self._read_losses()
        self._save(copied) if save or stop else self._look()
        if picture:
            self._picture()
        if stop:
            self._stop()

    def _is_time(self) -> bool:
        minutes, saving = self.options.save_minutes, self._saving
        return minutes is not None and saving is not None and time.monotonic() - saving.began >= 60 * minutes

    def _picture(self) -> None:
        if self._folder is None:
            return
        path = self._folder / f"iteration_{self._done:06d}.png"
        with self._written():
            self._grid(path)
            if self._events is not None:
                self._events.picture(self._done, path)

    def _stop(self) -> None:
        """All ranks have come as far: save, and do what the signal does that one of them has got."""
        self._saved_now()
        numbers = [number for number in self._ranks.exchange(self._signals[0][0] if self._signals else 0) if number]
        if not self._signals:
            signal.raise_signal(numbers[0])
        self._held.close()
        self._signals = self._held.enter_context(deferred())  # it did not end the program

    def say(self, text: str) -> None:
        """Show a line with the progress."""
        if self._progress is not None:
            self._progress.say(text)

    def messages(self) -> Path | None:
        """The file for what other libraries print, so that it does not tear the bar; None where there is no bar."""
        return self._folder / MESSAGES if self._folder is not None and self._progress is not None else None

    def _read_losses(self) -> None:
        """Bring the unread losses to the host: log, progress, and the check that they are finite."""
        first, losses = self._losses.read(self._done)
        self._read_at = time.monotonic()
        for iteration, values in enumerate(losses, first):
            if not math.isfinite(loss := values["loss"]):
                where = next(filter(None, self._ranks.exchange(self._state.spoilt())), "")
                raise CannotGoOn(
                    f"the loss is {loss} at iteration {iteration}{f' ({where})' if where else ''}: a smaller lr_img "
                    f"keeps it finite{self._kept()}"
                )
        if self._folder is not None and self._writes and losses:
            logged = [
                {**values, **({"checkpoint_pause": self._pauses.pop(iteration)} if iteration in self._pauses else {})}
                for iteration, values in enumerate(losses, first)
            ]
            with self._written():
                append_losses(self._folder, first, logged, round(self._read_at - self._began, 3))
                if self._events is not None:
                    self._events.losses(first, [values["loss"] for values in losses])
        if self._progress is not None and losses:
            self._progress.update(first + len(losses), "", **losses[-1])

    def _copy(self) -> State | None:
        """The state on the host, if it is not saved yet."""
        if self._saving is None or self._saving.last == self._done:
            return None
        start = time.monotonic()
        copied = self._state.copy()
        self._pauses[self._done - 1] = round(time.monotonic() - start, 6)
        return copied

    def _save(self, copied: State | None = None) -> None:
        """Write a checkpoint in the background."""
        copied = copied or self._copy()
        if self._saving is not None and copied is not None:
            with self._written():
                self._saving.begin(self._done, copied)

    def _saved_now(self) -> None:
        """Wait until the checkpoint is whole."""
        if self._saving is not None:
            with self._written():
                self._saving.wait()

    def _look(self) -> None:
        if self._saving is not None:
            with self._written():
                self._saving.look()

    def _check_finite(self) -> None:
        """The last change has been seen by no loss yet."""
        if where := next(filter(None, self._ranks.exchange(self._state.spoilt())), ""):
            raise CannotGoOn(self._not_finite(where))

    def _not_finite(self, where: str) -> str:
        return (
            f"iteration {self._done - 1} left pixels of {where} that are not finite: a smaller lr_img keeps them "
            f"finite{self._kept()}"
        )

    def _kept(self) -> str:
        """What is said of the checkpoint when the run cannot go on."""
        if self._saving is not None:
            with suppress(FastDMError):  # only what has become of the one that was being written counts
                self._saving.wait()
        return "" if self._saved is None else f"; the checkpoint of iteration {self._saved} is kept in {self._folder}"

    def finish(self) -> SyntheticSet:
        """The condensed set, on the CPU; with a folder, saved there as synthetic.safetensors and synthetic.png."""
        with deferred():
            self._check_finite()
            self._save()
            self._saved_now()
            result = self._synthetic()
            if self._folder is not None and self._writes:
                with self._written():
                    result.save(self._folder / SET)
                    result.save_picture(self._folder / PICTURE)
            self._ranks.exchange(None)  # all is written
        self._held.close()
        return result

    @contextmanager
    def _written(self) -> Iterator[None]:
        """Turn what can go wrong with a disk into a sentence; files are atomic, so what was there stays."""
        try:
            yield
        except NotFinite as error:
            raise CannotGoOn(self._not_finite(str(error))) from error
        except (OSError, SafetensorError, CannotWrite) as error:
            why = str(error) if isinstance(error, CannotWrite) else reason(error)
            mend = "" if isinstance(error, IsADirectoryError) else "free some space and "
            raise CannotGoOn(
                f"the run folder {self._folder} can no longer be written ({why}){self._kept()}: {mend}resume"
            ) from error


def _prepare(folder: Path, needed: int) -> None:
    """Make the folder; find out now, not after the first checkpoint, whether the run can be written there.

    needed: bytes, of which those that the run replaces are there already.
    """
    make_folder(folder)
    free = shutil.disk_usage(folder).free + sum(path.stat().st_size for path in _files(folder) if path.exists())
    if free < needed:
        raise FastDMError(
            f"the disk of the run folder {folder} has {size_text(free)} left, but the run writes {size_text(needed)}; "
            "free some space or choose another folder"
        )


def _remove_run(folder: Path) -> None:
    """Remove the files of a run before, and nothing else."""
    for path in _files(folder):
        path.unlink(missing_ok=True)


def _remove_later(folder: Path, done: int, note: Callable[[str], None]) -> None:
    """Remove what tells of later iterations than those that are done: the run may not come so far again, and where sums
    cannot be repeated it comes another way."""
    cut_log(folder / LOG, done, note)
    cut_log(folder / EVALUATIONS, done + 1, note)  # whose lines are of so many iterations that were done
    for path in folder.glob(PICTURES):
        number = path.stem.removeprefix("iteration_")
        if number.isdecimal() and int(number) > done:
            path.unlink(missing_ok=True)


def _files(folder: Path) -> Iterator[Path]:
    """The files of a run, of which not all need to be there; without its settings, which the next one replaces.

    The set first, so that whoever removes them and is stopped leaves a run that can be resumed or begun again.
    """
    names = (SET, *NAMES, LOG, ABOUT, PICTURE, MESSAGES, CONFIG, EVALUATION, EVALUATIONS, BASELINES)
    yield from (folder / name for name in names)
    for pattern in (SHARDS, PICTURES, f"{EVENTS}/events.out.tfevents.*"):
        yield from folder.glob(pattern)
