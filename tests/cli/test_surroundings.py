"""The command where Python, the locale and names are as on somebody else's machine."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import fastdm
from fastdm import cli

WORDS = (
    "--ipc 1 --Iteration 2 --batch_real 2 --num_exp 1 --num_eval 1 --epoch_eval_train 1 --model ConvNetD1 --device cpu"
)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    images = np.random.default_rng(0).integers(0, 256, (8, 1, 8, 8), dtype=np.uint8)
    path = tmp_path / "dä ta 🦊.npz"
    np.savez(path, x_train=images, y_train=np.arange(8) % 2, x_test=images, y_test=np.arange(8) % 2)
    return path


def test_a_run_without_a_locale_and_docstrings_is_the_same(data: Path, tmp_path: Path) -> None:
    """Names that ASCII lacks, with a line end in one; and no file is opened in the encoding of a locale."""
    save_path = tmp_path / "ein Ordner\n'ü'"
    plain = {"PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "LC_ALL": "C", "PYTHONHASHSEED": "7"}
    result = subprocess.run(
        [sys.executable, "-OO", "-X", "warn_default_encoding", "-m", "fastdm", "condense", str(data), *WORDS.split(),
         "--save_path", str(save_path)],
        env={**os.environ, **plain}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr
    assert not re.search(r"/(fastdm|kernels)/\S+: EncodingWarning.*", result.stderr)
    (folder,) = save_path.glob("DM_*_exp0")
    (page,) = save_path.glob("report_*.html")
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    options = {"ipc": 1, "iterations": 2, "batch_real": 2, "network": "ConvNetD1", "device": "cpu"}
    expected = fastdm.condense(str(data), **options)
    assert fastdm.SyntheticSet.load(folder / "synthetic.safetensors").images.equal(expected.images)


def test_a_tilde_is_the_home_folder_in_every_command(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a shell leaves it: in quotes, and after an equals sign."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    data.rename(tmp_path / "x.npz")
    run = "--ipc 1 --Iteration 1 --batch_real 2 --num_exp 1 --num_eval 0 --device cpu"
    for words in (
        "pool ~/pool.safetensors --dataset ~/x.npz --networks 1 --epochs 1 --states 2 --model ConvNetD1 --device cpu",
        f"condense ~/x.npz {run} --networks trained --pool ~/pool.safetensors --save_path=~/result",
        "inspect ~/result/DM_x_ConvNetD1_1ipc_exp0",
        "report ~/result --out ~/page.html --png ~/figures --data_path ~/",
        "export ~/result/res_DM_x_ConvNetD1_1ipc.pt ~/png",
        "pack ~/x.npz ~/x.fastdm",
        "plan ~/x.fastdm --ipc 1",
    ):
        result = CliRunner().invoke(cli.app, words.split(), catch_exceptions=False)
        assert result.exit_code == 0, (words, result.output)
    assert not (tmp_path / "~").exists()
    assert {"pool.safetensors", "result", "page.html", "figures", "png"} <= {path.name for path in tmp_path.iterdir()}
