"""`fastdm plan`, presets, and data sets named without a flag."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

import fastdm
from fastdm import cli
from fastdm.errors import FastDMError


def run(*words: object) -> str:
    result = CliRunner().invoke(cli.app, [*map(str, words)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def lines(*words: object) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run(*words).splitlines()]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fastdm.pack("digits", tmp_path_factory.mktemp("packed") / "digits.fastdm").path


def test_a_plan_for_imagenet_on_gpus_that_are_not_here() -> None:
    found = lines(
        "plan", "--preset", "imagenet64", "--device", "H200", "--device", "rtx4090", "--ranks", 1, "--ranks", 8
    )
    assert [(each["device"], each["ranks"]) for each in found] == [
        ("H200", 1), ("H200", 8), ("RTX4090", 1), ("RTX4090", 8),
    ]  # fmt: skip
    assert [each["residence"] for each in found] == ["copied", "copied", "streamed", "copied"]
    assert all(each["rate"].startswith("a model, not measured: ") for each in found)
    for each in found:
        assert each["device_bytes"] == sum(part["bytes"] for part in each["parts"] if part["place"] == "device")
        assert each["device_bytes"] < each["memory"]
    assert found[0]["total_seconds"] == pytest.approx(10_000 * found[0]["seconds"])


def test_a_plan_as_markdown() -> None:
    table = run("plan", "--preset", "cifar10", "--device", "H100", "--num_eval", 0, "--markdown").splitlines()
    assert [line.count("|") for line in table] == [10, 10, 10]
    assert table[2].startswith("| H100 | 1 | copied | 10 of 10 |")


def test_a_plan_reads_only_the_header_of_a_packed_file(packed: Path) -> None:
    words = (packed, "--device", "cpu", "--no_calibrate", "--ipc", 1, "--network", "ConvNetD1")
    (found,) = lines("plan", *words)
    assert (found["classes"], found["seconds"], found["residence"]) == (10, None, "streamed")
    parts = {part["part"]: part["bytes"] for part in found["parts"]}
    assert parts["pool of real images"] == 1437 * 64
    assert parts["synthetic images"] == 10 * 64 * 4


def test_a_plan_of_a_shape_and_of_a_pool_that_is_not_here() -> None:
    shape = ("--classes", 20, "--images", 10_000, "--size", 32, "--channels", 1)
    (found,) = lines(
        "plan", *shape, "--recipe", "trained", "--pool_networks", 2, "--pool_states", 3, "--device", "H100"
    )
    parts = {part["part"]: part["bytes"] for part in found["parts"]}
    parameters = 9 * 128 + 2 * 9 * 128 * 128 + (128 * 16 + 1) * 20
    assert parts["pool of trained networks"] == 2 * 3 * 4 * parameters


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--classes", 3, "--size", 8), "needs all of --classes, --images and --size"),
        (("digits", "--classes", 3, "--images", 30, "--size", 8), "not both"),
        (("digits", "--dataset", "MNIST"), "'digits' and --dataset MNIST are two data sets"),
        ((".",), "is a folder, whose images would have to be read: pack it first"),
        (("--device", "H10000"), "unknown device 'H10000'"),
        (("--classes", 3, "--images", 30, "--size", 8, "--channels", 0), "channels is 0; it must be a whole number of"),
        (("--preset", "cifar10", "--model", "ConvNetBN", "--device", "H100", "--ranks", 2), "ConvNetBN has BatchNorm"),
        (
            ("--preset", "cifar10", "--device", "H100", "--ranks", 11),
            "ranks is 11; it must be at least 1 and at most 10",
        ),
        (("--preset", "cifar1"), "unknown preset 'cifar1'; did you mean cifar10"),
    ],
)
def test_what_cannot_be_planned_is_refused(words: tuple[object, ...], message: str) -> None:
    with pytest.raises(FastDMError, match=message):
        run("plan", *words)


def test_presets_are_listed() -> None:
    assert lines("list", "presets") == [
        {"presets": ["cifar10", "cifar100", "tinyimagenet", "imagenet64", "imagenet128"]}
    ]


def test_a_preset_sets_what_is_not_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a data set may be named without --dataset; what the run keeps repeats it without the preset."""
    from fastdm.condensation import presets

    small = presets.Preset(
        10, 1437, (1, 8, 8), None, {"ipc": 2, "network": "ConvNetD1", "iterations": 3, "batch_real": 4}, {"num_exp": 1}
    )
    monkeypatch.setattr(presets, "PRESETS", {"small": small})
    words = ("--preset", "small", "--batch_real", 5, "--num_eval", 0, "--device", "cpu", "--save_path", tmp_path)
    run("condense", "digits", *words)
    kept = yaml.safe_load((tmp_path / "DM_digits_ConvNetD1_2ipc_exp0" / "config.yaml").read_text())
    assert (kept["ipc"], kept["Iteration" if "Iteration" in kept else "iteration"], kept["num_exp"]) == (2, 3, 1)
    assert (kept["batch_real"], kept["dataset"]) == (5, "digits")
    assert not kept.keys() & {"preset", "source"}
    file = tmp_path / "flags.yaml"
    file.write_text(yaml.safe_dump({"preset": "small", "ipc": 1}))
    run("condense", "digits", "--config", file, "--num_eval", 0, "--device", "cpu", "--save_path", tmp_path / "b")
    assert (tmp_path / "b" / "DM_digits_ConvNetD1_1ipc_exp0").is_dir()
    with pytest.raises(FastDMError, match="preset small needs a data set"):
        run("condense", "--preset", "small")
