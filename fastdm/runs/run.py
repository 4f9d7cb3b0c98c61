"""A run on disk: its folder, log, pictures and checkpoints. The loop reports to it; it changes nothing."""

import json
import math
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from fastdm.errors import FastDMError
from fastdm.runs.about import FILE as ABOUT
from fastdm.runs.about import About
from fastdm.runs.checkpoint import FILE, PREVIOUS, Checkpoint, load_checkpoint, save_checkpoint
from fastdm.runs.events import FOLDER as EVENTS
from fastdm.runs.events import Events
from fastdm.runs.log import FILE as LOG
from fastdm.runs.log import append_losses, cut_log
from fastdm.runs.options import RunOptions
from fastdm.synthetic.synthetic_set import SyntheticSet
from fastdm.system.files import atomic_write, locked, make_folder, reason
from fastdm.system.progress import Progress
from fastdm.system.signals import deferred
from fastdm.system.text import size_text

SETTINGS, CONFIG, SET, PICTURE = "settings.json", "config.yaml", "synthetic.safetensors", "synthetic.png"
LOCK = ".lock"
MESSAGES = "messages.txt"
"""What other libraries print while they compile or profile the run."""

SECONDS_BETWEEN_READS = 0.5
"""Losses stay on the device and are read together this often, so that an iteration never waits for the host."""


class Run:
    """Follows a condensation of `total` iterations, as a context manager: leaving it early keeps a checkpoint.

    state: tensors by name that decide how the run continues; they are saved, and filled when it is resumed.
    synthetic: gives the set as it stands, on the CPU. resume_key: what a checkpoint must have been made with to be
    resumed; resume_defaults: what holds for one that does not say. Without a save_path nothing is written; else no
    other process can use the folder meanwhile.
    """

    def __init__(
        self,
        state: Mapping[str, Tensor],
        synthetic: Callable[[], SyntheticSet],
        total: int,
        resume_key: dict[str, Any],
        options: RunOptions,
        resume_defaults: Mapping[str, Any] | None = None,
    ) -> None:
        self.options = options
        self.first_iteration = 0
        self._folder = folder = options.folder
        self._state = state
        self._synthetic = synthetic
        self._resume_key = json.dumps(resume_key)
        self._resume_defaults = resume_defaults
        self._unread: list[Tensor] = []
        self._names: list[str] = []
        self._total = total
        self._saved: int | None = None  # the iteration of the newest checkpoint
        self._notes: list[str] = []
        self._events: Events | None = None
        with ExitStack() as resources:  # closed here if anything goes wrong, else when the run is left
            if folder is not None:
                # Two checkpoints, one being written, and the set with its pictures.
                _prepare(folder, needed=4 * sum(tensor.nbytes for tensor in state.values()))
                resources.enter_context(locked(folder / LOCK, f"the run folder {folder}"))
                with self._written():
                    self._begin(folder)
                    if options.tensorboard:
                        self._events = resources.enter_context(closing(Events(folder, self.first_iteration or None)))
            for note in () if options.progress else self._notes:
                warnings.warn(note, stacklevel=4)
            self._resources = resources.pop_all()
        self._done = self.first_iteration
        self._progress = Progress("condense", total, start=self._done) if options.progress else None
        self._began = self._read_at = time.monotonic()

    def _begin(self, folder: Path) -> None:
        if self.options.resume:
            checkpoint = load_checkpoint(
                folder, self._resume_key, defaults=self._resume_defaults, note=self._notes.append
            )
            if checkpoint is not None:
                if checkpoint.iteration > self._total:
                    raise FastDMError(
                        f"{folder} has done {checkpoint.iteration} iterations already, more than {self._total}; "
                        "resume it with at least as many"
                    )
                self.first_iteration = self._saved = checkpoint.iteration
                self._restore(checkpoint)
        elif not self.options.overwrite and any((folder / name).exists() for name in (FILE, PREVIOUS, SET)):
            raise FastDMError(
                f"{folder} already holds a run: resume it, overwrite it, or choose another folder (--resume, "
                "--overwrite, --save_path)"
            )
        if self._saved is None:
            _remove_run(folder)
        cut_log(folder, self.first_iteration, self._notes.append)
        with atomic_write(folder / SETTINGS) as temporary:
            temporary.write_text(json.dumps(dict(self._synthetic().settings), indent=2) + "\n")
        if self.options.config is not None:
            with atomic_write(folder / CONFIG) as temporary:
                temporary.write_text(self.options.config)

    def _restore(self, checkpoint: Checkpoint) -> None:
        for name, tensor in self._state.items():
            saved = checkpoint.tensors.get(name)
            if saved is None or (saved.shape, saved.dtype) != (tensor.shape, tensor.dtype):
                raise FastDMError(
                    f"the checkpoint in {self._folder} holds no {name} of {tensor.dtype} {list(tensor.shape)}; "
                    "start without it"
                )
            tensor.copy_(saved)

    @property
    def notes(self) -> list[str]:
        """What was found amiss in the folder when the run began."""
        return self._notes

    def describe(self, about: About) -> None:
        """Keep in the folder what the run is made of, and later what it took."""
        if self._folder is not None:
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
        with deferred(), self._resources:
            if self._progress is not None:
                self._progress.__exit__(kind, error, trace)
            # The checkpoint before is kept where a loss has spoilt the images, or a disk is full.
            if error is not None and not isinstance(error, FastDMError):
                self._read_losses()
                if self._done > 0:
                    self._save()
                if self._saved is not None:
                    error.add_note(f"iteration {self._saved} is saved in {self._folder}")

    def iterations(self) -> range:
        """The remaining iterations. Timing starts here, excluding setup."""
        self._began = time.monotonic()
        if self._progress is not None:
            self._progress.start_clock()
        return range(self.first_iteration, self._total)

    def after(self, iteration: int, loss: Tensor, parts: Mapping[str, Tensor] | None = None) -> None:
        """Iteration number `iteration` is complete, with this loss, and what it consists of: scalars on the device."""
        self._done = iteration + 1
        self._names = ["loss", *(parts or {})]
        self._unread.append(torch.stack([loss, *(parts or {}).values()]))
        save = self._done % self.options.save_every == 0
        picture = self._done % self.options.picture_every == 0
        if save or picture or self._done == self._total or time.monotonic() - self._read_at >= SECONDS_BETWEEN_READS:
            self._read_losses()
        if save:
            self._save()
        if picture and self._folder is not None:
            path = self._folder / f"iteration_{self._done:06d}.png"
            with self._written():
                self._synthetic().save_grid(path)
                if self._events is not None:
                    self._events.picture(self._done, path)

    def say(self, text: str) -> None:
        """Show a line with the progress."""
        if self._progress is not None:
            self._progress.say(text)

    def messages(self) -> Path | None:
        """The file for what other libraries print, so that it does not tear the bar; None where there is no bar."""
        return self._folder / MESSAGES if self._folder is not None and self._progress is not None else None

    def _read_losses(self) -> None:
        """Bring the unread losses to the host: log, progress, and the check that they are finite."""
        rows = torch.stack(self._unread).tolist() if self._unread else []
        losses = [dict(zip(self._names, row, strict=True)) for row in rows]
        first = self._done - len(losses)
        self._unread.clear()
        self._read_at = time.monotonic()
        for iteration, values in enumerate(losses, first):
            if not math.isfinite(loss := values["loss"]):
                raise FastDMError(
                    f"the loss is {loss} at iteration {iteration}: a smaller lr_img keeps it finite{self._kept()}"
                )
        if self._folder is not None and losses:
            with self._written():
                append_losses(self._folder, first, losses, round(self._read_at - self._began, 3))
                if self._events is not None:
                    self._events.losses(first, [values["loss"] for values in losses])
        if self._progress is not None and losses:
            self._progress.update(self._done, **losses[-1])

    def _save(self) -> None:
        if self._folder is not None and self._saved != self._done:
            self._check_finite()
            with self._written():
                save_checkpoint(self._folder, Checkpoint(self._done, self._state, self._resume_key))
            self._saved = self._done

    def _check_finite(self) -> None:
        """The last change has been seen by no loss yet."""
        if not all(tensor.isfinite().all() for tensor in self._state.values()):
            raise FastDMError(
                f"iteration {self._done - 1} left pixels that are not finite: a smaller lr_img keeps them "
                f"finite{self._kept()}"
            )

    def _kept(self) -> str:
        """What is said of the checkpoint when the run cannot go on."""
        return "" if self._saved is None else f"; the checkpoint of iteration {self._saved} is kept in {self._folder}"

    def finish(self) -> SyntheticSet:
        """The condensed set, on the CPU; with a folder, saved there as synthetic.safetensors and synthetic.png."""
        with deferred():
            self._check_finite()
            self._save()
            result = self._synthetic()
            if self._folder is not None:
                with self._written():
                    result.save(self._folder / SET)
                    result.save_picture(self._folder / PICTURE)
        return result

    @contextmanager
    def _written(self) -> Iterator[None]:
        """Turn what can go wrong with a disk into a sentence; files are atomic, so what was there stays."""
        try:
            yield
        except (OSError, SafetensorError) as error:
            raise FastDMError(
                f"the run folder {self._folder} can no longer be written ({reason(error)}){self._kept()}: free some "
                "space and resume"
            ) from error


def _prepare(folder: Path, needed: int) -> None:
    """Make the folder; find out now, not after the first checkpoint, whether the run can be written there."""
    make_folder(folder)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise FastDMError(
            f"the disk of the run folder {folder} has {size_text(free)} left, but the run writes {size_text(needed)}; "
            "free some space or choose another folder"
        )


def _remove_run(folder: Path) -> None:
    """Remove the files of a run before, and nothing else."""
    names = (FILE, PREVIOUS, LOG, ABOUT, SET, PICTURE, MESSAGES, CONFIG)
    for path in (*(folder / name for name in names), *folder.glob("iteration_*.png")):
        path.unlink(missing_ok=True)
    for path in (folder / EVENTS).glob("events.out.tfevents.*"):
        path.unlink()
