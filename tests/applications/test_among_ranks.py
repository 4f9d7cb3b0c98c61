"""Continual learning, architecture search and pools by several processes."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import torch

import fastdm
from fastdm.applications.architecture_search import Search, run_search
from fastdm.applications.continual import Continual, run_continual
from fastdm.condensation.settings import Settings
from fastdm.data import open_dataset
from fastdm.evaluation.protocol import Protocol
from fastdm.networks.trained import NetworkPool
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


def pool(folder: Path, networks: int, resume: bool = False) -> None:
    how: dict[str, Any] = {"network": "ConvNetD1", "precision": "fp32", "device": "cpu"}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # for each network, on however many ranks: PyTorch's sums depend on it
    try:
        found = fastdm.train_pool(
            "digits", networks=networks, epochs=1, states=3, save_path=folder / "pool.safetensors", resume=resume, **how
        )
    finally:
        torch.set_num_threads(threads)
    torch.save((found.weights, found.accuracies), folder / f"found-{os.environ.get('RANK', '0')}.pt")


def test_ranks_share_the_networks_of_a_pool(tmp_path: Path) -> None:
    """Two of three and one of them, then none at the third rank, which resumes what is complete: all get the same."""
    folders = [tmp_path / name for name in ("one", "two")]
    folders[0].mkdir()
    pool(folders[0], 3)
    expected = torch.load(folders[0] / "found-0.pt")
    for ranks, resume in ((2, False), (3, True)):
        assert wait(start(ranks, pool, folders[1], 3, resume, folder=folders[1])) == [0] * ranks, said(folders[1])
        for rank in range(ranks):
            weights, accuracies = torch.load(folders[1] / f"found-{rank}.pt")
            assert torch.equal(weights, expected[0])
            assert accuracies == expected[1]
    assert [path.name for path in folders[1].glob("*.safetensors")] == ["pool.safetensors"]
    assert torch.equal(NetworkPool.load(folders[1] / "pool.safetensors").weights, expected[0])
    few = tmp_path / "few"
    assert wait(start(2, pool, few, 1, folder=few)) == [0, 0], said(few)
    assert all(torch.equal(torch.load(few / f"found-{rank}.pt")[0], expected[0][:1]) for rank in range(2))
