"""`fastdm continual` and `fastdm search`, as they are typed."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fastdm.cli import app
from fastdm.errors import FastDMError

QUICK = ("--dataset", "digits", "--device", "cpu", "--ipc", "1", "--iterations", "1", "--batch_real", "4")
TINY = (*QUICK, "--model", "ConvNetD1", "--num_eval", "1", "--epoch_eval_train", "1", "--dsa_strategy", "none")


def printed(*words: str | Path) -> list[dict[str, Any]]:
    """The JSON lines of a command, without those of its progress."""
    result = CliRunner().invoke(app, [*map(str, words)], catch_exceptions=True)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    return [line for line in lines if "progress" not in line]


def test_continual_prints_each_step_and_what_it_saved(tmp_path: Path) -> None:
    words = ("continual", *TINY, "--steps", "2", "--orders", "1", "--save_path", tmp_path)
    *steps, results, plot = printed(*words, "--method", "dm,random")
    assert [(step["method"], step["classes"]) for step in steps] == [
        ("DM", 5),
        ("DM", 10),
        ("random", 5),
        ("random", 10),
    ]
    assert (results["saved"], plot["saved"]) == (str(tmp_path / "continual.json"), str(tmp_path / "continual.png"))
    with pytest.raises(FastDMError, match=r"continual.json is there already: resume it, overwrite it"):
        printed(*words)
    assert printed(*words, "--method", "DM,random", "--resume")[:4] == steps


def test_search_prints_what_each_proxy_is_worth(tmp_path: Path) -> None:
    space = ("--depth", "1", "--width", "32", "--activation", "relu", "--norm", "none,instance", "--networks", "2")
    words = ("search", *QUICK, "--model", "ConvNetD1", *space, "--epoch_eval_train", "1", "--epoch_whole_set", "1")
    lines = printed(*words, "--proxy", "random", "--save_path", tmp_path)
    results = [line for line in lines if "network" in line]
    assert [line["proxy"] for line in results] == ["random"] * 2 + ["whole set"] * 2
    random, whole = [line for line in lines if "spearman" in line]
    assert (random["proxy"], random["images"], whole["images"]) == ("random", 10, 1437)
    assert lines[-1] == {"saved": str(tmp_path / "summary.json")}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("continual", *TINY, "--method", "DC"), "method is 'DC'; it must be one of 'DM', 'random', 'herding'"),
        (("continual", *TINY, "--steps", "3"), "steps is 3, but 10 classes cannot be divided evenly among them"),
        (("search", *QUICK, "--depth", "one"), "'one' must be whole numbers, joined by commas"),
        (("search", *QUICK, "--norm", "spectral"), "norm is 'spectral'; it must be one of 'none', 'batch'"),
        (("search", *QUICK), "cannot take 8x8 images: pooling leaves no pixels; use larger images or less depth"),
        (("search", *QUICK, "--depth", "1", "--proxy", "DC"), "proxy is 'DC'; it must be one of 'condensed', 'random'"),
    ],
)
def test_mistakes_are_one_sentence(words: tuple[str, ...], message: str, tmp_path: Path) -> None:
    with pytest.raises(FastDMError, match=message):
        printed(*words, "--save_path", tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["continual", "search"])
def test_help_says_what_is_done(command: str) -> None:
    result = CliRunner().invoke(app, [command, "--help"])
    assert result.exit_code == 0
    for text in ("--dataset", "--save_path", "--resume", "SAVE_PATH"):
        assert text in result.stdout
