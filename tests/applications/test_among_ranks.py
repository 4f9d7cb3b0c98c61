"""Continual learning and architecture search by several processes."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch

from fastdm.applications.architecture_search import Search, run_search
from fastdm.applications.continual import Continual, run_continual
from fastdm.condensation.settings import Settings
from fastdm.data import open_dataset
from fastdm.evaluation.protocol import Protocol
from tests.ranks import said, start, wait

CPU = torch.device("cpu")
NETWORKS = ["ConvNet-d1-w32-relu-none-none", "ConvNet-d1-w32-relu-instance-none"]


def both(folder: Path) -> None:
    """Two steps of continual learning by two methods, and a search among two networks."""
    data = open_dataset("digits")
    settings = Settings(ipc=1, iterations=2, batch_real=4, network="ConvNetD1", precision="fp32").resolve(data, CPU)
    protocol = Protocol(["ConvNetD1"], "flip", num_eval=2, epochs=1)
    run_continual(Continual(data, settings, protocol, ("DM", "herding"), 2, 1, 1), CPU, save_path=folder / "continual")
    search = Search(
        data, settings, dataclasses.replace(protocol, networks=NETWORKS, num_eval=1), NETWORKS, ("condensed",), 1
    )
    run_search(search, CPU, save_path=folder / "search")


def records(folder: Path) -> list[dict[str, Any]]:
    found = [
        record
        for name in ("continual/continual.json", "search/search.json")
        for record in json.loads((folder / name).read_text())["results"]
    ]
    return [{key: value for key, value in record.items() if key != "seconds"} for record in found]


def test_two_ranks_find_what_one_finds(tmp_path: Path) -> None:
    both(tmp_path / "one")
    folder = tmp_path / "two"
    assert wait(start(2, both, folder, folder=folder)) == [0, 0], said(folder)
    one, two = records(tmp_path / "one"), records(folder)
    assert len(one) == 8
    assert two == one
