"""`fastdm report`, and how `fastdm condense` ends."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from fastdm.cli import app, output
from fastdm.errors import FastDMError
from fastdm.runs.about import About
from tests.oracles import random_dataset


def printed(*arguments: object) -> list[dict[str, Any]]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_condense_ends_with_a_page_and_report_makes_others(tmp_path: Path) -> None:
    data = random_dataset([6, 6], shape=(3, 8, 8))
    images = data.train.images.movedim(1, -1).numpy()
    np.savez(tmp_path / "toy.npz", x_train=images, y_train=data.train.labels.numpy())
    flags = [
        "--ipc",
        "1",
        "--num_eval",
        "0",
        "--num_exp",
        "2",
        "--model",
        "ConvNetD1",
        "--batch_real",
        "4",
        "--device",
        "cpu",
    ]
    where = ["--save_path", tmp_path / "result"]
    outcome = printed("condense", "--dataset", tmp_path / "toy.npz", "--iterations", "2", *flags, *where)[-1]
    runs = [tmp_path / "result" / f"DM_toy_ConvNetD1_1ipc_exp{number}" for number in range(2)]
    page = tmp_path / "result" / "report_DM_toy_ConvNetD1_1ipc.html"
    saved = tmp_path / "result" / "res_DM_toy_ConvNetD1_1ipc.pt"
    assert outcome == {"saved": str(saved), "report": str(page), "runs": [*map(str, runs)]}
    assert page.read_text().startswith("<!doctype html>")

    about = About.read(runs[0])
    assert about is not None
    assert about.dataset["train_images"] == 12
    assert about.plan["pool_bytes"] == 12 * 3 * 8 * 8
    assert about.machine["torch"] == torch.__version__
    assert about.peak_bytes is not None
    assert about.peak_bytes > 2**20

    printed("report", tmp_path / "result", "-o", tmp_path / "page.html")
    lines = printed("report", tmp_path / "result", "-o", tmp_path / "page.html", "--png", tmp_path / "png")  # again
    assert [line["saved"] for line in lines][:2] == [str(tmp_path / "page.html"), str(tmp_path / "png" / "loss.png")]


def test_on_a_terminal_condense_ends_with_sentences(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(output, "on_terminal", lambda: True)
    output.print_outcome(Path("res.pt"), Path("r.html"), [Path("a/run_exp0"), Path("a/run_exp1")], evaluated=True)
    assert capsys.readouterr().out.splitlines() == [
        "saved res.pt",
        "Open r.html in a browser to see the result.",
        "Each run folder, a/run_exp0 to run_exp1, holds its set (synthetic.safetensors) and what was measured of it "
        "(evaluation.json).",
    ]
    output.print_outcome(Path("res.pt"), Path("r.html"), [Path("a/run_exp0")], evaluated=False)
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "The run folder, a/run_exp0, holds its set (synthetic.safetensors)."


def test_a_folder_without_runs_is_one_sentence(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert result.exit_code != 0
    assert "is neither a run folder" in str(result.exception)


def test_baselines_are_those_of_images_like_the_run_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run on a packed set is called after the folder that was packed, whose images have another size."""
    monkeypatch.chdir(tmp_path)
    for name, side in (("toy", 8), ("large", 16)):
        data = random_dataset([6, 6], shape=(3, side, side))
        images, labels = data.train.images.movedim(1, -1).numpy(), data.train.labels.numpy()
        np.savez(f"{name}.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    small = "--ipc 1 --num_eval 1 --epoch_eval_train 1 --num_exp 1 --model ConvNetD1 --batch_real 4 --device cpu"
    printed("condense", "toy.npz", "--iterations", "2", *small.split())
    run = Path("result/DM_toy_ConvNetD1_1ipc_exp0")
    for named, message in (
        ("large.npz", r"data set large has 2 classes of 3x16x16 images; name its own \(--dataset\)"),
        ("", r"name the run's data set \(--dataset\)"),
    ):
        words = ["report", str(run), "--baselines", *(["--dataset", named] if named else [])]
        with pytest.raises(FastDMError, match=message):
            CliRunner().invoke(app, words, catch_exceptions=False)
        assert not (run / "baselines.json").exists()
    printed("report", run, "--baselines", "--dataset", "toy.npz", "--device", "cpu")
    assert (run / "baselines.json").exists()
