"""Processes that are the ranks of a job, as torchrun starts them, without its two seconds and its own restarts."""

import dataclasses
import os
import resource
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch._dynamo  # noqa: F401  # what takes the longest to import

import fastdm
from fastdm.condensation import loop
from fastdm.errors import FastDMError
from fastdm.system import ranks as system_ranks
from fastdm.system.ranks import joined
from tests.oracles import random_dataset

TIMEOUT = 240

context = get_context("forkserver")  # which has imported what takes long
context.set_forkserver_preload(["tests.ranks"])

SIZES = [12, 10, 9, 14, 11]
"""Real images of the classes: more of them than ranks, and no multiple of most numbers of these."""

FITS = 1000
"""Bytes on a disk that is full: enough for a message, and not for a shard."""

SMALL: dict[str, Any] = {"ipc": 2, "batch_real": 10, "network": "ConvNetD1", "precision": "fp32", "device": "cpu"}


Join = Callable[[], AbstractContextManager[Any]]


def start(size: int, work: Callable[..., Any], *arguments: Any, folder: Path, join: Join = joined) -> list[BaseProcess]:
    """Start `work` as so many ranks, within `join()`; what each says or raises is in `folder`/rank-N.txt."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    folder.mkdir(exist_ok=True)
    processes: list[BaseProcess] = []
    for rank in range(size):
        variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
        environment = {name: str(value) for name, value in variables.items()}
        environment |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
        output = folder / f"rank-{rank}.txt"
        process = context.Process(target=_run, args=(environment, output, join, work, arguments))
        process.start()
        processes.append(process)
    return processes


def _run(
    environment: dict[str, str], output: Path, join: Join, work: Callable[..., Any], arguments: Sequence[Any]
) -> None:
    os.environ.update(environment)
    system_ranks.BROKEN_SILENCE, system_ranks.BEAT = 2.0, 0.2  # a rank that is gone is known sooner
    code = 0
    with output.open("w", buffering=1) as file:
        sys.stdout = sys.stderr = file
        try:
            with join():
                work(*arguments)
        except FastDMError as error:
            print(f"FastDMError: {error}", file=file)
            code = 2
        except KeyboardInterrupt as error:
            print(f"KeyboardInterrupt: {getattr(error, '__notes__', '')}", file=file)
            code = 130
        except BaseException:
            traceback.print_exc(file=file)
            code = 1
        file.flush()
        os._exit(code)


def wait(processes: Sequence[BaseProcess]) -> list[int | None]:
    """Their exit codes; all end within the time limit, or are killed and have None."""
    end = time.monotonic() + TIMEOUT
    for process in processes:
        process.join(max(0.0, end - time.monotonic()))
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
        process.join()
    return codes


def said(folder: Path) -> list[str]:
    return [path.read_text() for path in sorted(folder.glob("rank-*.txt"))]


def condense(folder: Path, options: dict[str, Any]) -> None:
    """Condense in a run folder, where each rank also saves the set that it gets.

    Options are those of `condense`, and pause: seconds after each iteration; std: that of the data set; full_disk: a
    rank that from some iteration on cannot write files of more than `FITS` bytes.
    """
    chosen = {**SMALL, **options}
    dataset = random_dataset(SIZES, shape=(1, 8, 8))
    if std := chosen.pop("std", None):
        normalised = loop.normalised(dataset)
        vars(loop)["normalised"] = lambda _: normalised  # else no other data set can be resumed with
        dataset = dataclasses.replace(dataset, std=(std,))
    if pause := chosen.pop("pause", 0.0):
        chosen["callback"] = lambda *_: time.sleep(pause)
    rank, iteration = chosen.pop("full_disk", (-1, 0))
    if str(rank) == os.environ["RANK"]:
        limits = FITS, resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        chosen["callback"] = lambda done, *_: (
            resource.setrlimit(resource.RLIMIT_FSIZE, limits) if done == iteration else None
        )
    result = fastdm.condense(dataset, save_path=folder, **chosen)
    result.save(folder / f"set-{os.environ['RANK']}.safetensors")
