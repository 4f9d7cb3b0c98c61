"""Other people's condensed sets in and out, from the command line."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import fastdm
from fastdm import cli
from fastdm.errors import FastDMError

QUICK = ("--num_eval", "1", "--epoch_eval_train", "1", "--device", "cpu", "--model", "ConvNetD1")


@pytest.fixture
def digits(tmp_path: Path) -> fastdm.SyntheticSet:
    """A set of digits, and the files of others that hold it."""
    synthetic = fastdm.random_selection("digits", 1)
    torch.save([synthetic.images, synthetic.labels], tmp_path / "normalised.pt")
    torch.save({"data": [[synthetic.pixels() / 255, synthetic.labels]]}, tmp_path / "unit.pt")
    return synthetic


def run(*words: object) -> list[dict[str, Any]]:
    result = CliRunner().invoke(cli.app, [*map(str, words)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def accuracy(*words: object) -> float:
    *_, last = run("evaluate", *words, *QUICK)
    return float(last["mean"])


def test_pixels_are_what_the_flag_says(digits: fastdm.SyntheticSet, tmp_path: Path) -> None:
    digits.save(tmp_path / "own.safetensors")
    own = accuracy(tmp_path / "own.safetensors")
    assert accuracy(tmp_path / "normalised.pt", "--dataset", "digits", "--normalised") == own
    run("export", tmp_path / "unit.pt", tmp_path / "out.npz", "--dataset", "digits", "--not_normalised")
    assert torch.equal(fastdm.open_dataset(tmp_path / "out.npz").train.images, digits.pixels())
    with pytest.raises(FastDMError, match=r"load it with normalised=True \(--normalised\)"):
        run("evaluate", tmp_path / "normalised.pt", "--dataset", "digits", *QUICK)


@pytest.mark.parametrize(("name", "words"), [("images_best.pt", ("--format", "mtt")), ("data.pt", ("--format", "idc"))])
def test_the_files_of_others_are_written(
    digits: fastdm.SyntheticSet, tmp_path: Path, name: str, words: tuple[str, ...]
) -> None:
    digits.save(tmp_path / "own.safetensors")
    assert run("export", tmp_path / "own.safetensors", tmp_path / name, *words)[0]["saved"] == str(tmp_path / name)
    dataset = fastdm.open_dataset("digits")
    loaded = fastdm.SyntheticSet.load(tmp_path / name, dataset=dataset)
    torch.testing.assert_close(loaded.images, digits.images, rtol=0, atol=4e-7)  # 1 in [0, 1], over std 0.38
    (tmp_path / name).rename(tmp_path / f"other_{name}")
    if name.startswith("images"):
        (tmp_path / "labels_best.pt").rename(tmp_path / "other_labels_best.pt")
    run("export", tmp_path / f"other_{name}", tmp_path / "again.safetensors", "--dataset", "digits")
    again = fastdm.SyntheticSet.load(tmp_path / "again.safetensors")
    assert torch.equal(again.images, loaded.images)
    assert again.class_names == digits.class_names


def test_an_unknown_format_is_refused(digits: fastdm.SyntheticSet, tmp_path: Path) -> None:
    with pytest.raises(FastDMError, match="format is 'npy'; it must be one of 'safetensors', 'public', 'mtt', 'idc'"):
        run("export", tmp_path / "unit.pt", tmp_path / "a", "--dataset", "digits", "--format", "npy")
    with pytest.raises(FastDMError, match=r"holds 1 set, counted from 0; there is no set 3"):
        run("export", tmp_path / "unit.pt", tmp_path / "a.pt", "--dataset", "digits", "--experiment", "3")


def test_canvases_are_evaluated_and_exported_decoded(tmp_path: Path) -> None:
    canvases = fastdm.random_selection("digits", 1, partition=2)
    canvases.save(tmp_path / "own.safetensors")
    torch.save([canvases.images, canvases.labels], tmp_path / "data.pt")
    words = (tmp_path / "data.pt", "--dataset", "digits", "--normalised", "--factor", 2)
    assert accuracy(*words) == accuracy(tmp_path / "own.safetensors")
    run("export", words[0], tmp_path / "out.npz", *words[1:])
    assert torch.equal(fastdm.open_dataset(tmp_path / "out.npz").train.images, canvases.expand().pixels())
    with pytest.raises(FastDMError, match=r"partition is 4, but .* says that its own is 2"):
        accuracy(tmp_path / "own.safetensors", "--factor", 4)


def test_a_set_of_an_own_network_is_measured_in_one_that_is_named(tmp_path: Path) -> None:
    own = dataclasses.replace(fastdm.random_selection("digits", 1), settings={"network": "Mine"})
    own.save(tmp_path / "own.safetensors")
    with pytest.raises(FastDMError, match=r"condensed in Mine, which is not a network .* name another \(--model\)"):
        run("evaluate", tmp_path / "own.safetensors", "--device", "cpu")
    with pytest.raises(FastDMError, match="fastdm does not know Mine; leave --measure out"):
        run("export", tmp_path / "own.safetensors", tmp_path / "out", "--measure", "--device", "cpu")
    assert accuracy(tmp_path / "own.safetensors") > 0


def test_what_was_measured_before_an_interruption_is_written(
    digits: fastdm.SyntheticSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = tmp_path / "own.safetensors", tmp_path / "found.json"
    digits.save(path)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fastdm.applications.measured_file.random_selection", stop)
    CliRunner().invoke(cli.app, ["evaluate", str(path), *QUICK, "--out", str(out), "--baselines"])
    assert [*json.loads(out.read_text())["evaluations"]] == [str(path)]
