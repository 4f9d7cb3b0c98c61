"""Streams: the same images in the same order, a bounded ring, and no thread left behind."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fastdm.data.pool import Pool
from fastdm.errors import FastDMError

IMAGE = 3 * 4 * 4


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "fastdm-prefetch"]


@pytest.fixture
def pool() -> Pool:
    images = torch.randint(0, 256, (60, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Pool(images, torch.arange(0, 61, 20))


def plan(pool: Pool, steps: int) -> Iterator[Tensor]:
    return (pool.draw(3, step, 5) for step in range(steps))


@pytest.mark.parametrize(
    ("chunk_bytes", "rows"), [(1, 1), (5 * IMAGE * 2, 2), (10**6, 3)], ids=["less than a row", "two rows", "all rows"]
)
def test_chunks_are_the_rows_of_the_plan(pool: Pool, chunk_bytes: int, rows: int) -> None:
    seen: dict[int, list[Tensor]] = {}
    for chunk in pool.stream(plan(pool, 4), chunk_bytes, depth=2):
        assert chunk.rows.stop - chunk.rows.start <= rows
        assert chunk.rows.start == sum(map(len, seen.get(chunk.item, [])))
        seen.setdefault(chunk.item, []).append(chunk.images.clone())
    assert list(seen) == [0, 1, 2, 3]
    for item, index in enumerate(plan(pool, 4)):
        assert torch.equal(torch.cat(seen[item]), pool.images[index])
    assert not threads()


def test_an_empty_index_has_an_empty_batch(pool: Pool) -> None:
    """Whoever asks for a batch per index would get the next one's."""
    indices = [torch.tensor(rows, dtype=torch.int64) for rows in ([1], [], [2, 3])]
    found = [(batch.item, len(batch.images)) for batch in pool.stream(indices, None)]
    assert found == [(0, 1), (1, 0), (2, 2)]


def test_the_buffers_are_depth_many_and_used_again(pool: Pool) -> None:
    addresses = [chunk.images.data_ptr() for chunk in pool.stream(plan(pool, 12), 10**6, depth=3)]
    assert len(addresses) == 12
    assert len(set(addresses)) == 3


def test_no_more_than_the_ring_is_gathered_ahead(pool: Pool) -> None:
    asked = []

    def watched() -> Iterator[Tensor]:
        for step in range(50):
            asked.append(step)
            yield pool.draw(0, step, 5)

    chunks = pool.stream(watched(), 10**6, depth=3)
    for used, _ in enumerate(chunks):
        assert len(asked) <= used + 4  # three buffers, and the item that waits for one
        if used == 20:
            break
    chunks.close()


def test_leaving_early_closing_and_dropping_end_the_thread(pool: Pool) -> None:
    for _ in pool.stream(plan(pool, 100), depth=2):
        break
    assert not threads()
    chunks = pool.stream(plan(pool, 100))
    next(chunks)
    assert threads()
    chunks.close()
    assert not threads()
    with pytest.raises(StopIteration):
        next(chunks)
    chunks = pool.stream(plan(pool, 100))
    next(chunks)
    del chunks
    assert not threads()


def test_errors_of_the_plan_and_of_reading_reach_the_loop(pool: Pool) -> None:
    def broken() -> Iterator[Tensor]:
        yield pool.draw(0, 0, 5)
        raise ZeroDivisionError("in the plan")

    chunks = pool.stream(broken())
    next(chunks)
    with pytest.raises(ZeroDivisionError, match="in the plan"):
        next(chunks)
    with pytest.raises(FastDMError, match="there are 60 images"):
        list(pool.stream([torch.tensor([[60]])]))
    with pytest.raises(FastDMError, match="it must be int64"):
        list(pool.stream([torch.tensor([[[1, 2]]])]))
    with contextlib.suppress(RuntimeError):
        for _ in pool.stream(plan(pool, 9)):
            raise RuntimeError("in the loop")
    assert not threads()


@pytest.mark.parametrize(("chunk_bytes", "depth"), [(0, 3), (1, 1)])
def test_impossible_rings_are_refused_at_once(pool: Pool, chunk_bytes: int, depth: int) -> None:
    with pytest.raises(FastDMError, match="at least 2 and 1"):
        pool.stream(plan(pool, 1), chunk_bytes, depth)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_fork_cannot_go_on_with_a_stream(pool: Pool) -> None:
    chunks = pool.stream(plan(pool, 5))
    next(chunks)
    child = os.fork()
    if child == 0:  # nothing of pytest may run on in here
        try:
            next(chunks)
        except FastDMError as error:
            os._exit(17 if "fork" in str(error) else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 17
    assert len(list(chunks)) == 4


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_gathering_goes_on_in_a_fork() -> None:
    """DataLoader's workers are forks: there the core's threads are absent, and the caller works alone."""
    big = Pool(torch.full((3000, 3, 32, 32), 7, dtype=torch.uint8), torch.tensor([0, 3000]))
    index = torch.arange(3000)
    big.gather(index)  # starts the threads
    child = os.fork()
    if child == 0:  # NumPy compares, because OpenMP, which PyTorch uses, hangs in forks
        os._exit(0 if (big.gather(index).numpy() == big.images.numpy()).all() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("is_started", [False, True])
def test_ctrl_c_around_the_start_of_the_thread_leaves_none(
    is_started: bool, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = threading.Thread.start

    def interrupted(thread: threading.Thread) -> None:
        if is_started:
            start(thread)
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        next(pool.stream(plan(pool, 9)))
    assert not threads()


def test_ctrl_c_leaves_no_thread(tmp_path: Path) -> None:
    program = """
import signal, threading, time, torch
signal.signal(signal.SIGINT, signal.default_int_handler)  # also where a background job has inherited it ignored
from fastdm.data.pool import Pool
pool = Pool(torch.zeros(8, 3, 4, 4, dtype=torch.uint8), torch.tensor([0, 8]))
def plan():
    yield pool.draw(0, 0, 4)
    print("waiting", flush=True)
    while True:
        time.sleep(0.05)
        yield pool.draw(0, 0, 4)
try:
    for _ in pool.stream(plan()):
        pass
except KeyboardInterrupt:
    print([thread.name for thread in threading.enumerate()], flush=True)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "waiting\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "['MainThread']\n"
    assert process.returncode == 0
