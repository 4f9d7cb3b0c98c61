"""What a run folder shows, and that a header is enough for it."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fastdm
from fastdm.applications.experiments import file_name, run_experiments, write_evaluation
from fastdm.applications.inspection import inspect
from fastdm.applications.run_summary import summarise_run, summarise_set
from fastdm.condensation.settings import Settings
from fastdm.errors import FastDMError
from fastdm.evaluation.outcome import Evaluation
from fastdm.evaluation.protocol import Protocol
from fastdm.runs.options import RunOptions
from tests.oracles import random_dataset


@pytest.fixture
def run(tmp_path: Path) -> Path:
    fastdm.condense(
        random_dataset([6, 5], shape=(3, 8, 8)), ipc=2, iterations=3, batch_real=4, network="ConvNetD1", device="cpu",
        save_path=tmp_path / "run",
    )  # fmt: skip
    return tmp_path / "run"


def test_a_run_folder(run: Path) -> None:
    facts = summarise_run(run)
    assert (facts["state"], facts["iterations"], facts["checkpoint"], facts["logged"]) == ("complete", 3, 3, 3)
    assert (facts["dataset"], facts["classes"], facts["settings"]["ipc"]) == ("random", 2, 2)
    assert facts["loss"] == json.loads((run / "log.jsonl").read_text().splitlines()[-1])["loss"]
    assert "checkpoint.json" in facts["files"]
    synthetic = fastdm.SyntheticSet.load(run / "synthetic.safetensors")
    write_evaluation(run, synthetic, Protocol(["MLP"], "none"), Evaluation({"MLP": [0.5]}), 1.5)
    assert summarise_run(run)["accuracies"] == {"MLP": [0.5]}


@pytest.mark.parametrize("name", ["log.jsonl", "synthetic.safetensors", "checkpoint.json", "evaluation.json"])
@pytest.mark.parametrize(
    "content", [b"", b"\xff", b"[" * 100_000, b"\x10" + bytes(7) + b'{"__metadata__":3}', b"[3]\n"]
)
def test_a_damaged_file_of_a_run_is_named(name: str, content: bytes, run: Path) -> None:
    (run / name).write_bytes(content)
    facts = summarise_run(run)
    assert facts["iterations"] == 3
    left_out = {"log.jsonl": "loss", "synthetic.safetensors": "dataset", "evaluation.json": "accuracies"}
    assert facts["checkpoint"] is None if name.startswith("checkpoint") else left_out[name] not in facts
    assert facts.get("damaged", []) == [name] * (name != "log.jsonl")  # which an interrupted run may leave empty
    assert facts["state"] == ("complete" if name in ("log.jsonl", "evaluation.json") else "not complete")


def test_a_run_that_is_not_complete(run: Path) -> None:
    (run / "synthetic.safetensors").unlink()
    assert summarise_run(run)["state"] == "not complete"
    (run / "settings.json").write_text("{")
    with pytest.raises(FastDMError, match="is not a run folder: it has no settings"):
        summarise_run(run)


def test_a_header_says_what_the_file_says(run: Path) -> None:
    path = run / "synthetic.safetensors"
    brief = summarise_set(path)
    assert json.loads(json.dumps(brief)) == json.loads(json.dumps(inspect(path)))
    assert summarise_set(run / "checkpoint.json") is None
    assert summarise_set(run / "log.jsonl") is None


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FastDMError, match="pipe is not a regular file"):
        summarise_set(tmp_path / "pipe")


def test_looking_at_a_run_needs_no_torch(run: Path) -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from fastdm import cli\n"
        "for path in sys.argv[1:]:\n"
        "    result = CliRunner().invoke(cli.app, ['inspect', path], catch_exceptions=False)\n"
        "    assert result.exit_code == 0, result.output\n"
        "assert not {'torch', 'numpy', 'safetensors.torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(run), str(run / "synthetic.safetensors")], check=True)


@pytest.mark.parametrize("name", ["../../etc", "/etc/passwd", "a\x00b\nc", "..", "x" * 300, "\x1b[31m"])
def test_no_name_leads_outside_the_folder(name: str, tmp_path: Path) -> None:
    path = tmp_path / f"res_DM_{file_name(name)}_ConvNet_1ipc.pt"
    assert path.resolve().parent == tmp_path.resolve()
    path.touch()
    assert path.name.isprintable()


def test_a_data_set_s_name_leads_nowhere(tmp_path: Path) -> None:
    dataset = dataclasses.replace(random_dataset([6, 6], shape=(3, 8, 8)), name="../../up")
    cpu = torch.device("cpu")
    settings = Settings(ipc=1, iterations=0, batch_real=4, network="ConvNetD1").resolve(dataset, cpu)
    folder = tmp_path / "a" / "b" / "c"
    path = run_experiments(
        dataset, settings, None, cpu, num_exp=1, save_path=folder, options=RunOptions(), report=lambda *_: None
    )
    assert path == folder / "res_DM_.._.._up_ConvNetD1_1ipc.pt"
    assert path.exists()
    assert [each.name for each in tmp_path.iterdir()] == ["a"]
    assert [each.name for each in (tmp_path / "a").iterdir()] == ["b"]
