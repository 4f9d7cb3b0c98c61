"""Many networks at once: their trainings side by side, as is fastest on the device."""

import math
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import TypeVar

import torch

from fastdm.system.progress import Progress

Job = TypeVar("Job")
Result = TypeVar("Result")


def side_by_side(
    run: Callable[[Job, Callable[[], None]], Result],
    jobs: Sequence[Job],
    device: torch.device,
    bar: Progress | None,
    where: Callable[[int, int], str] | None = None,
) -> list[Result]:
    """`run(job, after_step)` for all jobs: one after another on a GPU, on a CPU as many at once as it has threads.

    Small networks leave threads waiting for each other when they share the work of one layer; a thread that has a
    network to itself never waits. The first error of any of them ends all.
    """
    lock, stopping, done = threading.Lock(), threading.Event(), 0

    def after_step() -> None:
        nonlocal done
        if stopping.is_set():
            raise RuntimeError("stopped because another training failed or was interrupted")
        if bar is not None:
            with lock:
                done += 1
                bar.update(done, where(done, workers) if where is not None else "")

    threads = torch.get_num_threads()
    workers = max(1, min(threads, len(jobs))) if device.type == "cpu" else 1
    # The number of threads is a setting of the thread that works with them.
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(threads // workers,)) as pool:
        started = [pool.submit(run, job, after_step) for job in jobs]
        try:
            wait(started, return_when=FIRST_EXCEPTION)
            ended = [each.result() for each in started if each.done()]  # raises what one has raised
            assert len(ended) == len(jobs)
            return ended
        finally:
            stopping.set()
            pool.shutdown(wait=False, cancel_futures=True)
            torch.set_num_threads(threads)


def position(done: int, networks: int, at_once: int, steps: int, epochs: int) -> str:
    """Where `done` updates are in the training of networks of `steps` updates, some of them side by side."""
    group = (done - 1) // (at_once * steps)
    first, last = group * at_once + 1, min((group + 1) * at_once, networks)
    share = (done - group * at_once * steps) / ((last - first + 1) * steps)
    which = f"network {first}" if first == last else f"networks {first} to {last}"
    return f"{which} of {networks}, epoch {math.ceil(share * epochs)} of {epochs}"
