"""A job that is killed, whatever it is about, loses nothing but what came after its last checkpoint."""

import json
import os
import random
import time
from pathlib import Path

import torch

import fastdm
from fastdm.synthetic.synthetic_set import SyntheticSet
from tests.oracles import random_dataset
from tests.ranks import SIZES, SMALL, condense, said, start, wait

KILLS = 20
RANKS = (1, 2, 1, 3)
"""Ranks of one session after another."""

ITERATIONS = 150
OPTIONS = {"iterations": ITERATIONS, "resume": True, "save_every": 3, "picture_every": 10, "pause": 0.01}
MOST_SECONDS = 0.8
"""From a start to the kill: time to join, to open, to resume, and for a part of the iterations."""


def saved(folder: Path) -> int:
    """The iteration of the newest checkpoint that an index names."""
    for name in ("checkpoint.json", "checkpoint-previous.json"):
        if (folder / name).exists():
            return int(json.loads((folder / name).read_text())["iteration"])
    return 0


def test_twenty_kills_at_random_moments_leave_the_bits_of_a_run_without_any(tmp_path: Path) -> None:
    seed = int(os.environ.get("FASTDM_TEST_SEED", random.randrange(1 << 32)))
    print(f"moments: FASTDM_TEST_SEED={seed}")
    moments = random.Random(seed)
    folder, reached = tmp_path / "run", []
    for kill in range(KILLS):
        processes = start(RANKS[kill % len(RANKS)], condense, folder, OPTIONS, folder=folder)
        time.sleep(moments.uniform(0, MOST_SECONDS))
        for process in processes:
            process.kill()
        for process in processes:
            process.join()
        reached.append(saved(folder))
    print(f"checkpoints: {reached}")
    assert reached == sorted(reached)  # no kill costs a checkpoint
    assert wait(start(2, condense, folder, OPTIONS, folder=folder)) == [0, 0], said(folder)
    whole = fastdm.condense(random_dataset(SIZES, shape=(1, 8, 8)), iterations=ITERATIONS, **SMALL)
    assert torch.equal(SyntheticSet.load(folder / "synthetic.safetensors").images, whole.images)
    logged = [json.loads(line)["iteration"] for line in (folder / "log.jsonl").read_text().splitlines()]
    assert logged == list(range(ITERATIONS))
    assert not list(folder.glob(".*.tmp"))  # nor do they leave anything behind
