"""Ranks share a run: the same bits as one, whatever becomes of some of them."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import fastdm
from fastdm.runs.checkpoint import FILE, PREVIOUS
from fastdm.runs.losses import LAG
from fastdm.synthetic.synthetic_set import SyntheticSet
from fastdm.system import ranks as system_ranks
from tests.oracles import random_dataset
from tests.ranks import SIZES, SMALL, condense, said, start, wait

ITERATIONS = 9


def run(size: int, folder: Path, **options: Any) -> list[int | None]:
    return wait(start(size, condense, folder, {"iterations": ITERATIONS, **options}, folder=folder))


@pytest.fixture(scope="module")
def alone() -> torch.Tensor:
    dataset = random_dataset(SIZES, shape=(1, 8, 8))
    return fastdm.condense(dataset, iterations=ITERATIONS, **SMALL).images


def log(folder: Path) -> list[int]:
    return [json.loads(line)["iteration"] for line in (folder / "log.jsonl").read_text().splitlines()]


def images(folder: Path) -> torch.Tensor:
    return SyntheticSet.load(folder / "synthetic.safetensors").images


@pytest.mark.parametrize("size", [2, 3, 4])
def test_ranks_give_the_bits_of_one(size: int, alone: torch.Tensor, tmp_path: Path) -> None:
    assert run(size, tmp_path / "run", save_every=4, picture_every=3) == [0] * size, said(tmp_path / "run")
    folder = tmp_path / "run"
    assert torch.equal(images(folder), alone)
    assert all(torch.equal(SyntheticSet.load(folder / f"set-{rank}.safetensors").images, alone) for rank in range(size))
    assert log(folder) == list(range(ITERATIONS))
    assert {path.name for path in folder.glob("iteration_*")} == {f"iteration_{n:06d}.png" for n in (3, 6, 9)}
    shards = json.loads((folder / FILE).read_text())["shards"]
    assert len(shards) == size
    assert (shards[0]["first"], shards[-1]["stop"]) == (0, SMALL["ipc"] * len(SIZES))
    one = fastdm.condense(
        random_dataset(SIZES, shape=(1, 8, 8)), iterations=ITERATIONS, save_path=tmp_path / "one", **SMALL
    )
    assert torch.equal(one.images, alone)
    losses = [
        torch.tensor([json.loads(line)["loss"] for line in (each / "log.jsonl").read_text().splitlines()])
        for each in (folder, tmp_path / "one")
    ]
    torch.testing.assert_close(*losses, rtol=1e-5, atol=0)  # summed in another order


def test_a_run_is_resumed_by_any_number_of_ranks(alone: torch.Tensor, tmp_path: Path) -> None:
    """1 → 2 → 3 → 1 ranks, a few iterations each."""
    for size, iterations in ((2, 5), (3, 7)):
        options = {"iterations": iterations, "resume": True}
        if size == 2:
            fastdm.condense(random_dataset(SIZES, shape=(1, 8, 8)), iterations=2, save_path=tmp_path, **SMALL)
        assert run(size, tmp_path, **options) == [0] * size, said(tmp_path)
    last = fastdm.condense(
        random_dataset(SIZES, shape=(1, 8, 8)), iterations=ITERATIONS, save_path=tmp_path, resume=True, **SMALL
    )
    assert torch.equal(last.images, alone)
    assert log(tmp_path) == list(range(ITERATIONS))


def pauses(folder: Path) -> list[int]:
    """The iterations after which the log says how long a checkpoint took."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert all(line.get("checkpoint_pause", 0) >= 0 for line in lines)
    return [line["iteration"] for line in lines if "checkpoint_pause" in line]


def test_a_checkpoint_is_written_when_its_minutes_have_passed(tmp_path: Path) -> None:
    """At once by one process; among ranks once all have heard of it, and only then is it asked for anew."""
    dataset = random_dataset(SIZES, shape=(1, 8, 8))
    fastdm.condense(dataset, iterations=ITERATIONS, save_path=tmp_path / "one", save_minutes=1e-9, **SMALL)
    assert pauses(tmp_path / "one") == list(range(ITERATIONS))
    assert run(2, tmp_path / "two", save_minutes=1e-9) == [0, 0], said(tmp_path / "two")
    assert pauses(tmp_path / "two") == list(range(LAG, ITERATIONS, LAG + 1))


def test_more_ranks_than_classes_are_refused(tmp_path: Path) -> None:
    assert run(6, tmp_path) == [2] * 6
    assert all("a class is not divided: use at most 5" in text for text in said(tmp_path))


def test_batch_norm_is_refused_with_the_reason(tmp_path: Path) -> None:
    assert run(2, tmp_path, network="ConvNetBN") == [2, 2]
    assert all("BatchNorm, whose statistics are those of all classes together" in text for text in said(tmp_path))


@contextmanager
def slowly() -> Iterator[Any]:
    """Join, at the second rank so slowly that its silence would say that it is gone."""
    if os.environ["RANK"] == "1":
        opened = system_ranks.TCPStore
        pause = 2 * system_ranks.BROKEN_SILENCE
        system_ranks.TCPStore = lambda *arguments, **named: (time.sleep(pause), opened(*arguments, **named))[1]
    with system_ranks.joined() as ranks:
        yield ranks


def test_a_rank_that_starts_slowly_reads_why_the_others_have_ended(tmp_path: Path) -> None:
    options = {"iterations": ITERATIONS, "network": "ConvNetBN"}
    assert wait(start(2, condense, tmp_path, options, folder=tmp_path, join=slowly)) == [2, 2], said(tmp_path)
    assert all("BatchNorm, whose statistics" in text for text in said(tmp_path))


def until(folder: Path, lines: int) -> None:
    """Wait until a run has logged so many iterations."""
    end = time.monotonic() + 120
    path = folder / "log.jsonl"
    while time.monotonic() < end and (not path.exists() or path.read_text().count("\n") < lines):
        time.sleep(0.01)


@pytest.mark.parametrize("killed", [0, 1])
def test_a_rank_that_is_killed_ends_all_and_is_named(killed: int, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    processes = start(3, condense, folder, {"iterations": 10_000, "save_every": 5, "pause": 0.01}, folder=folder)
    until(folder, 20)
    processes[killed].kill()
    killed_at = time.monotonic()
    codes = wait(processes)
    assert time.monotonic() - killed_at < 300  # not the half hour of a store that waits
    assert codes == [-signal.SIGKILL if rank == killed else 2 for rank in range(3)], said(folder)
    for rank, text in enumerate(said(folder)):
        assert rank == killed or f"rank {killed} is gone" in text
    done = len(log(folder))
    saved = json.loads((folder / (FILE if (folder / FILE).exists() else PREVIOUS)).read_text())["iteration"]
    assert done - saved <= 2 * 5  # one is being written, and the next one waits for it
    more = saved + 3
    assert run(2, folder, iterations=more, resume=True, save_every=5) == [0, 0], said(folder)
    whole = fastdm.condense(random_dataset(SIZES, shape=(1, 8, 8)), iterations=more, **SMALL)
    assert torch.equal(images(folder), whole.images)


@pytest.mark.parametrize("save_every", [1000, LAG], ids=["rare checkpoints", "no lag between checkpoints"])
def test_a_signal_to_one_rank_stops_all_at_the_same_iteration(save_every: int, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    options = {"iterations": 10_000, "pause": 0.01, "save_every": save_every}
    processes = start(3, condense, folder, options, folder=folder)
    until(folder, 10)
    assert processes[1].pid is not None
    os.kill(processes[1].pid, signal.SIGINT)
    assert wait(processes) == [130] * 3, said(folder)
    saved = json.loads((folder / FILE).read_text())["iteration"]
    assert all(f"iteration {saved} is saved in" in text for text in said(folder))
    assert run(3, folder, iterations=saved + 2, resume=True) == [0] * 3, said(folder)
    whole = fastdm.condense(random_dataset(SIZES, shape=(1, 8, 8)), iterations=saved + 2, **SMALL)
    assert torch.equal(images(folder), whole.images)


def test_a_loss_that_is_not_finite_stops_all_ranks_at_its_iteration(tmp_path: Path) -> None:
    """Real images of classes 3 and 4 beyond float32, from iteration 3 on."""
    folder = tmp_path / "run"
    assert run(2, folder, iterations=3) == [0, 0], said(folder)
    assert run(2, folder, iterations=40, resume=True, std=1e-38) == [2, 2]
    first, second = said(folder)
    assert first == second
    assert re.search(r"the loss is \S+ at iteration 3 \(class 'class 0'\)", first)
    assert "the checkpoint of iteration 3 is kept in" in first


def test_an_error_of_one_rank_is_what_the_others_say(tmp_path: Path) -> None:
    """The first rank finds a run in the folder; the others do not look."""
    assert run(2, tmp_path, iterations=1) == [0, 0], said(tmp_path)
    assert run(2, tmp_path, iterations=1) == [2, 2]
    first, second = said(tmp_path)
    assert "already holds a run" in first
    assert "rank 0 has ended: " in second
    assert "already holds a run" in second


DIES_ONCE = """
import os, signal
from fastdm.cli import main
from fastdm.runs.run import Run

after = Run.after

def dies_once(self, iteration, *rest):
    first, rank = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0", os.environ["RANK"]
    if first and rank == "1" and iteration == 12:
        os.kill(os.getpid(), signal.SIGKILL)
    return after(self, iteration, *rest)

Run.after = dies_once
main()
"""


def test_torchrun_restarts_a_run_which_resumes_by_itself(tmp_path: Path) -> None:
    script = tmp_path / "dies_once.py"
    script.write_text(DIES_ONCE)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1"]
    flags = ["--dataset=digits", "--ipc=1", "--iterations=20", "--batch_real=4", "--model=ConvNetD1", "--device=cpu"]
    flags += ["--precision=fp32", "--num_exp=1", "--num_eval=0", "--save_every=5", f"--save_path={tmp_path}"]
    done = subprocess.run(
        [sys.executable, *torchrun, str(script), "condense", *flags], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "DM_digits_ConvNetD1_1ipc_exp0"
    assert log(folder) == list(range(20))
    alone = fastdm.condense(
        "digits", 1, iterations=20, batch_real=4, network="ConvNetD1", device="cpu", precision="fp32"
    )
    assert torch.equal(images(folder), alone.images)
