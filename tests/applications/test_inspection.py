"""`inspect` tells the package's files apart."""

from pathlib import Path

import pytest
import torch

import fastdm
from fastdm.applications.inspection import inspect
from fastdm.errors import FastDMError
from fastdm.synthetic.synthetic_set import save_public
from tests.oracles import random_dataset


def test_every_kind_of_file(tmp_path: Path) -> None:
    dataset = random_dataset([6, 5], shape=(3, 8, 8))
    synthetic = fastdm.condense(
        dataset, ipc=2, iterations=2, batch_real=4, network="ConvNetD1", device="cpu", save_path=tmp_path / "run"
    )
    facts = inspect(tmp_path / "run" / "synthetic.safetensors")
    assert (facts["kind"], facts["classes"], facts["ipc"]) == ("condensed set", 2, 2)
    facts = inspect(tmp_path / "run" / "checkpoint.json")
    assert (facts["kind"], facts["iteration"]) == ("checkpoint", 2)
    assert facts["settings"]["ipc"] == 2

    save_public([synthetic, synthetic], tmp_path / "res.pt", {"ConvNet": [0.5, 0.25]})
    facts = inspect(tmp_path / "res.pt")
    assert (facts["experiments"], facts["ipc"]) == (2, 2)
    assert facts["accuracies"] == {"ConvNet": [0.5, 0.25]}

    fastdm.pack(dataset, tmp_path / "set.fastdm")
    facts = inspect(tmp_path / "set.fastdm", verify=True)
    assert facts["kind"] == "packed data set"
    assert facts["parts"]["train"]["images"] == 11
    assert facts["class_names"] == ["class 0", "class 1"]
    assert "classes" not in facts["metadata"], "a text of all names, which nothing shortens"


def test_what_is_none_of_them(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("some words")
    torch.save({"weights": 1}, tmp_path / "other.pt")
    for name in ("words.txt", "other.pt", "absent"):
        with pytest.raises(FastDMError, match=name):
            inspect(tmp_path / name)
    for content in ('{"evaluations": {}}', "[1]"):  # such as `fastdm evaluate -o` writes
        (tmp_path / "found.json").write_text(content)
        with pytest.raises(FastDMError, match=r"found\.json is not a checkpoint; fastdm inspect knows no other JSON"):
            inspect(tmp_path / "found.json")
    (tmp_path / "found.json").write_text("{")
    with pytest.raises(FastDMError, match=r"the checkpoint .*found\.json is damaged"):
        inspect(tmp_path / "found.json")


def test_a_damaged_packed_set_is_found_by_verify(tmp_path: Path) -> None:
    path = tmp_path / "set.fastdm"
    fastdm.pack(random_dataset([6, 5], shape=(3, 8, 8)), path)
    content = bytearray(path.read_bytes())
    content[4096 + 5] ^= 1  # a pixel of the first class
    path.write_bytes(content)
    inspect(path)
    with pytest.raises(FastDMError, match="class 0"):
        inspect(path, verify=True)
