"""The command where Python, the locale and names are as on somebody else's machine."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fastdm

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
