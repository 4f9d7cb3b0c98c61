"""A run on disk: its folder, log, pictures and checkpoints. The loop reports to it; it changes nothing."""

import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from fastdm.errors import FastDMError
from fastdm.runs.checkpoint import FILE, PREVIOUS, Checkpoint, load_checkpoint, save_checkpoint
from fastdm.synthetic.synthetic_set import SyntheticSet
from fastdm.system.files import atomic_write, make_folder
from fastdm.system.progress import Progress

LOG, SETTINGS, SET, PICTURE = "log.jsonl", "settings.json", "synthetic.safetensors", "synthetic.png"

SECONDS_BETWEEN_READS = 0.5
"""Losses stay on the device and are read together this often, so that an iteration never waits for the host."""


class Run:
    """Follows a condensation of `total` iterations, as a context manager: leaving it early keeps a checkpoint.

    state: tensors by name that decide how the run continues; they are saved, and filled when it is resumed.
    synthetic: gives the set as it stands, on the CPU. resume_key: what a checkpoint must have been made with to be
    resumed. With `folder` None nothing is written.
    """

    def __init__(
        self,
        folder: Path | None,
        state: Mapping[str, Tensor],
        synthetic: Callable[[], SyntheticSet],
        total: int,
        resume_key: dict[str, Any],
        *,
        resume: bool,
        overwrite: bool,
        save_every: int,
        picture_every: int,
        progress: bool,
    ) -> None:
        self.first_iteration = 0
        self._folder = folder
        self._state = state
        self._synthetic = synthetic
        self._resume_key = json.dumps(resume_key)
        self._save_every = save_every
        self._picture_every = picture_every
        self._unread: list[Tensor] = []
        self._names: list[str] = []
        self._total = total
        if folder is not None:
            # Two checkpoints, one being written, and the set with its pictures.
            _prepare(folder, needed=4 * sum(tensor.nbytes for tensor in state.values()))
            self._begin(folder, resume, overwrite)
        self._done = self.first_iteration
        self._progress = Progress("condense", total, start=self._done) if progress else None
        self._began = self._read_at = time.monotonic()

    def _begin(self, folder: Path, resume: bool, overwrite: bool) -> None:
        if resume:
            checkpoint = load_checkpoint(folder, self._resume_key)
            if checkpoint is not None:
                if checkpoint.iteration > self._total:
                    raise FastDMError(
                        f"{folder} has done {checkpoint.iteration} iterations already, more than {self._total}; "
                        "resume it with at least as many"
                    )
                self.first_iteration = checkpoint.iteration
                self._restore(checkpoint)
        elif not overwrite and any((folder / name).exists() for name in (FILE, PREVIOUS, SET)):
            raise FastDMError(f"{folder} already holds a run: resume it, overwrite it, or choose another folder")
        if self.first_iteration == 0:
            _remove_run(folder)
        _cut_log(folder / LOG, self.first_iteration)
        with atomic_write(folder / SETTINGS) as temporary:
            temporary.write_text(json.dumps(dict(self._synthetic().settings), indent=2) + "\n")

    def _restore(self, checkpoint: Checkpoint) -> None:
        for name, tensor in self._state.items():
            saved = checkpoint.tensors.get(name)
            if saved is None or (saved.shape, saved.dtype) != (tensor.shape, tensor.dtype):
                raise FastDMError(
                    f"the checkpoint in {self._folder} holds no {name} of {tensor.dtype} {list(tensor.shape)}; "
                    "start without it"
                )
            tensor.copy_(saved)

    def __enter__(self) -> "Run":
        if self._progress is not None:
            self._progress.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.__exit__(kind, error, trace)
        # A loss that is not finite has spoilt the images, and a full disk takes none: the checkpoint before is kept.
        if not isinstance(error, FastDMError):
            self._read_losses()
            self._save()

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
        save = self._done % self._save_every == 0
        picture = self._done % self._picture_every == 0
        if save or picture or self._done == self._total or time.monotonic() - self._read_at >= SECONDS_BETWEEN_READS:
            self._read_losses()
        if save:
            self._save()
        if picture and self._folder is not None:
            with _written(self._folder):
                self._synthetic().save_grid(self._folder / f"iteration_{self._done:06d}.png")

    def say(self, text: str) -> None:
        """Show a line with the progress."""
        if self._progress is not None:
            self._progress.say(text)

    def _read_losses(self) -> None:
        """Bring the unread losses to the host: log, progress, and the check that they are finite."""
        losses = torch.stack(self._unread).tolist() if self._unread else []
        first = self._done - len(losses)
        self._unread.clear()
        self._read_at = time.monotonic()
        for iteration, (loss, *_) in enumerate(losses, first):
            if not math.isfinite(loss):
                raise FastDMError(f"the loss is {loss} at iteration {iteration}: a smaller lr_img keeps it finite")
        if self._folder is not None and losses:
            seconds = round(self._read_at - self._began, 3)
            with _written(self._folder), (self._folder / LOG).open("a") as log:
                for iteration, values in enumerate(losses, first):
                    named = dict(zip(self._names, values, strict=True))
                    log.write(json.dumps({"iteration": iteration, **named, "seconds": seconds}) + "\n")
        if self._progress is not None and losses:
            self._progress.update(self._done, **dict(zip(self._names, losses[-1], strict=True)))

    def _save(self) -> None:
        if self._folder is not None:
            checkpoint = Checkpoint(self._done, self._state, self._resume_key)
            with _written(self._folder):
                save_checkpoint(self._folder, checkpoint)

    def finish(self) -> SyntheticSet:
        """The condensed set, on the CPU; with a folder, saved there as synthetic.safetensors and synthetic.png."""
        result = self._synthetic()
        if not result.images.isfinite().all():  # The last change: no loss has seen it.
            raise FastDMError("the last iteration left pixels that are not finite: a smaller lr_img keeps them finite")
        if self._folder is not None:
            with _written(self._folder):
                result.save(self._folder / SET)
                result.save_picture(self._folder / PICTURE)
        return result


def _prepare(folder: Path, needed: int) -> None:
    """Make the folder; find out now, not after the first checkpoint, whether the run can be written there."""
    make_folder(folder)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise FastDMError(
            f"the run folder {folder} has {free >> 20} MiB of space, but the run writes {needed >> 20} MiB"
        )


@contextmanager
def _written(folder: Path) -> Iterator[None]:
    """Turn what can go wrong with a disk during a run into a sentence; files are atomic, so what was there stays."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise FastDMError(
            f"the run folder {folder} can no longer be written ({error}); its checkpoint is kept: free some space "
            "and resume"
        ) from error


def _remove_run(folder: Path) -> None:
    """Remove the files of a run before, and nothing else."""
    for path in (*(folder / name for name in (FILE, PREVIOUS, LOG, SET, PICTURE)), *folder.glob("iteration_*.png")):
        path.unlink(missing_ok=True)


def _cut_log(log: Path, iterations: int) -> None:
    """Leave the lines of the first iterations: a run that was killed has logged more than its checkpoint holds."""
    kept = ""
    for line in log.read_text().splitlines() if log.exists() else ():
        try:
            if json.loads(line)["iteration"] < iterations:
                kept += line + "\n"
        except ValueError:  # cut short
            break
    with atomic_write(log) as temporary:
        temporary.write_text(kept)
