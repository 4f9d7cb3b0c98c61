"""Flags that are cut short, and files of flags."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

import fastdm
from fastdm import cli
from fastdm.cli.commands import COMMANDS
from fastdm.cli.flags import _device
from fastdm.errors import FastDMError
from fastdm.evaluation.outcome import Evaluation

QUICK = {
    "dataset": "digits", "ipc": 1, "Iteration": 2, "batch_real": 4, "num_exp": 1, "num_eval": 0, "device": "cpu",
}  # fmt: skip

CHOICES = {
    "--precision": "fp32|tf32|bf16",
    "--init": "real|noise",
    "--objective": "mean|mmd|cov",
    "--protocol": "dm|idc",
}


def run(*words: object) -> list[dict[str, Any]]:
    """The JSON lines of a command that goes well."""
    result = CliRunner().invoke(cli.app, [*map(str, words)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def write(path: Path, content: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(content))
    return path


def test_the_settings_of_a_run_repeat_it(tmp_path: Path) -> None:
    first = write(tmp_path / "run.yaml", {**QUICK, "dsa-strategy": "flip_crop", "seed": 3, "compile": False})
    run("condense", "--config", first, "--save_path", tmp_path / "a", "--momentum", "0.25")
    folder = "DM_digits_ConvNet_1ipc_exp0"
    again = tmp_path / "a" / folder / "config.yaml"
    settings = yaml.safe_load(again.read_text())
    assert settings["dsa_strategy"] == "flip_crop"
    assert (settings["momentum"], settings["lr_img"], settings["seed"], settings["model"]) == (0.25, 1.0, 3, "ConvNet")
    run("condense", "--config", again, "--save_path", tmp_path / "b")
    one, other = (fastdm.SyntheticSet.load(tmp_path / each / folder / "synthetic.safetensors") for each in ("a", "b"))
    assert one.images.equal(other.images)
    assert one.settings == other.settings


def test_the_settings_of_a_run_by_a_recipe_repeat_it(tmp_path: Path) -> None:
    pool = tmp_path / "pool.safetensors"
    fastdm.train_pool("digits", networks=1, epochs=1, states=2, network="ConvNetD1", save_path=pool, device="cpu")
    words = (
        "--dataset",
        "digits",
        "--recipe",
        "trained",
        "--pool",
        pool,
        "--ipc",
        1,
        "--iterations",
        2,
        "--device",
        "cpu",
    )
    run("condense", *words, "--num_exp", 1, "--num_eval", 0, "--save_path", tmp_path / "a")
    folder = "DM_digits_ConvNetD1_1ipc_exp0"
    run("condense", "--config", tmp_path / "a" / folder / "config.yaml", "--save_path", tmp_path / "b")
    one, other = (fastdm.SyntheticSet.load(tmp_path / each / folder / "synthetic.safetensors") for each in ("a", "b"))
    assert one.settings == other.settings
    assert one.images.equal(other.images)


def test_the_settings_of_a_run_from_python_are_flags_too(tmp_path: Path) -> None:
    made = fastdm.condense("digits", 1, iterations=2, batch_real=4, seed=5, device="cpu", save_path=tmp_path / "run")
    words = ("--config", tmp_path / "run" / "settings.json", "--dataset", "digits", "--device", "cpu")
    run("condense", *words, "--num_exp", 1, "--num_eval", 0, "--save_path", tmp_path / "again")
    loaded = fastdm.SyntheticSet.load(tmp_path / "again" / "DM_digits_ConvNet_1ipc_exp0" / "synthetic.safetensors")
    assert loaded.images.equal(made.images)


def test_a_flag_of_another_command_is_named_without_a_list_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("ipc: 1")
    with pytest.raises(FastDMError, match=r"unknown setting 'ipc'; choose one of dataset, .*: \d+ in all$"):
        run("evaluate", "set.safetensors", "--config", tmp_path / "run.yaml")
    with pytest.raises(FastDMError, match=r"in all \(fastdm list networks\)$"):
        run("condense", "--dataset", "digits", "--model", "Foo", "--save_path", tmp_path / "a")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("ipcc: 1", "unknown setting 'ipcc'; did you mean ipc?"),
        ("config: a.yaml", "unknown setting 'config'"),
        ("ipc: [1, 2]", r"ipc is \[1, 2\]; a flag has one value"),
        ("yes: 1", "True is not the name of a flag, as YAML reads it"),
        ("ipc:\t1\n\tseed: 2", "is not YAML"),
        ("resume: 3", "resume is 3; it must be true or false"),
        ("dsa-strategy: flip\ndsa_strategy: crop", "gives dsa_strategy twice"),
        ("- ipc", "must hold one flag in a line"),
        ("ipc: 'a", "is not YAML: while scanning a quoted scalar"),
        ("[" * 100_000, "is not YAML"),
        ("#" * (2 << 20), "is too large"),
    ],
    ids=lambda text: text[:12],
)
def test_a_config_that_makes_no_sense_is_refused(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(content)
    with pytest.raises(FastDMError, match=message):
        run("condense", "--config", tmp_path / "run.yaml")


def test_a_config_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FastDMError, match=r"absent.yaml cannot be read: No such file"):
        run("condense", f"--config={tmp_path / 'absent.yaml'}")


def test_a_value_of_a_config_is_checked_like_a_flag(tmp_path: Path) -> None:
    path = write(tmp_path / "run.yaml", {"ipc": "many"})
    result = CliRunner().invoke(cli.app, ["condense", "--config", str(path)])
    assert result.exit_code == 2
    assert "Invalid value for '--ipc': " in result.stderr


def test_the_beginning_of_a_flag_will_do_while_it_is_unique(tmp_path: Path) -> None:
    words = ("--dataset", "digits", "--ipc=1", "--Iter", 0, "--num-ex=1", "--num_ev", 0, "--dev", "cpu")
    lines = run("condense", *words, "--save_p", tmp_path)
    assert lines[-1]["saved"] == str(tmp_path / "res_DM_digits_ConvNet_1ipc.pt")
    with pytest.raises(FastDMError, match="--save is the beginning of --save_path and --save_ev"):
        run("condense", *words, "--save", tmp_path)


def test_evaluations_take_the_public_prefix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def found(train: Any, data: Any, protocol: Any, device: Any, progress: bool) -> Evaluation:
        asked.append(protocol.epochs)
        return Evaluation({"ConvNet": [0.5]})

    monkeypatch.setattr("fastdm.applications.measured_file.measure", found)
    fastdm.random_selection("digits", 1).save(tmp_path / "set.safetensors")
    run("evaluate", tmp_path / "set.safetensors", "--epoch_eval", 7)
    assert asked == [7]


def test_a_number_is_a_gpu() -> None:
    assert [_device(text) for text in ("1", "cuda:1", "cpu")] == ["cuda:1", "cuda:1", "cpu"]


def test_the_public_method_is_taken_and_the_others_are_refused(tmp_path: Path) -> None:
    words = [f"--{name}={value}" for name, value in QUICK.items()]
    run("condense", *words, "--method", "dm", "--save_path", tmp_path)
    result = CliRunner().invoke(cli.app, ["condense", "--method", "DSA"])
    assert result.exit_code == 2
    assert "Invalid value for '--method': 'DSA' is not one of 'DM'." in result.stderr


def test_files_carry_the_name_as_it_was_given(tmp_path: Path) -> None:
    words = [f"--{name}={value}" for name, value in {**QUICK, "dataset": "DIGITS"}.items()]
    last = run("condense", *words, "--save_path", tmp_path)[-1]
    assert last["saved"] == str(tmp_path / "res_DM_DIGITS_ConvNet_1ipc.pt")
    assert run("inspect", tmp_path / "DM_DIGITS_ConvNet_1ipc_exp0")[0]["dataset"] == "digits"


@pytest.mark.parametrize(
    ("kind", "name"), [("networks", "ConvNet"), ("Datasets", "CIFAR10"), ("augmentations", "flip")]
)
def test_what_there_is_can_be_listed(kind: str, name: str) -> None:
    (line,) = run("list", kind)
    assert name in line[kind.lower()]


def test_the_environment_names_what_a_bug_report_needs() -> None:
    (line,) = run("env")
    assert line["fastdm"] == fastdm.__version__
    assert line["packages"]["torch"].split("+")[0] == sys.modules["torch"].__version__.split("+")[0]
    assert line["default_precision"] in ("fp32", "bf16")


def test_completion_and_a_short_help_are_there() -> None:
    for words in (["-h"], ["condense", "-h"]):
        result = CliRunner().invoke(cli.app, words)
        assert result.exit_code == 0
        assert "--help" in result.output
    result = CliRunner().invoke(
        cli.app, [], prog_name="fastdm",
        env={"_FASTDM_COMPLETE": "complete_bash", "COMP_WORDS": "fastdm cond", "COMP_CWORD": "1"},
    )  # fmt: skip
    assert result.output.split() == ["condense"]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_written_for_people(name: str) -> None:
    """No Python types, no brackets in brackets; where some words are possible, they are what a flag is shown with."""
    result = CliRunner().invoke(cli.app, [name, "--help"])
    assert result.exit_code == 0
    shown = result.output.replace("{dataset}_{model}_{ipc}", "")
    assert not re.findall(r"--.*<list.*|\[\[.*|--.* TEXT .*|\{[a-z].*", shown)
    for flag, words in CHOICES.items():
        if f"  {flag} " in shown:
            assert re.search(rf"^  {flag} {re.escape(words)}\b", shown, re.M)


@pytest.mark.parametrize("flag", ["--install-completion", "--show_completion"])
def test_completion_for_a_shell_by_name_is_refused_and_names_the_shells(
    flag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The word would be taken for a command, and completion be installed for the shell that runs the program."""
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(FastDMError, match=f"{flag} takes no 'nosuchshell' after it: .* bash, zsh, fish or PowerShell"):
        run(flag, "nosuchshell")
    assert not list(tmp_path.iterdir())
