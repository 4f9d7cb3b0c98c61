"""The command as a user types it, in a process of its own."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import fastdm
from fastdm import cli
from fastdm.errors import FastDMError
from fastdm.evaluation.outcome import Evaluation
from fastdm.synthetic.initial import random_selection
from fastdm.synthetic.synthetic_set import SyntheticSet, save_public
from fastdm.system.signals import STOPPING

PUBLIC_SETTINGS = {
    "model": "ConvNet",
    "ipc": 1,
    "eval_mode": "SS",
    "num_exp": 2,
    "num_eval": 1,
    "epoch_eval_train": 2,
    "Iteration": 3,
    "lr_img": 1,
    "lr_net": 0.01,
    "batch_real": 8,
    "batch_train": 256,
    "init": "real",
    "dsa_strategy": "color_crop_cutout_flip_scale_rotate",
    "dis_metric": "ours",
}
PUBLIC_FLAGS = [word for name, value in PUBLIC_SETTINGS.items() for word in (f"--{name}", str(value))]


def main(*words: str | Path) -> object:
    """The exit code of the program, run in this process, whose signals and streams stay as they were."""
    before = {number: signal.getsignal(number) for number in STOPPING}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["fastdm", *map(str, words)])
        patch.setattr("fastdm.system.streams.Output", lambda stream: stream)
        patch.setattr(sys, "unraisablehook", sys.unraisablehook)
        try:
            cli.main()
        except SystemExit as ended:
            return ended.code
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
    raise AssertionError("the option parser always ends the process")


def started(*arguments: str | Path, before: str = "pass") -> subprocess.Popen[str]:
    """The command in a process of its own, in which no signal is ignored, whatever this one inherited."""
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    code += "[signal.signal(each, signal.SIG_DFL) for each in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)]; "
    return subprocess.Popen(
        [sys.executable, "-c", f"{code}{before}; from fastdm.cli import main; main()", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_losses(log: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not (log.exists() and log.read_text()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fastdm", *map(str, arguments)], capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="module")
def arrays(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of tinted noise as an .npz file named toy."""
    generator = np.random.default_rng(0)
    labels = np.arange(60) % 3
    images = generator.integers(0, 128, (60, 16, 16, 3)) + 40 * labels[:, None, None, None]
    path = tmp_path_factory.mktemp("data") / "toy.npz"
    np.savez(path, x_train=images.astype(np.uint8), y_train=labels, x_test=images.astype(np.uint8), y_test=labels)
    return path


def test_the_public_flags_and_files(arrays: Path, tmp_path: Path) -> None:
    result = command("condense", "--dataset", arrays, *PUBLIC_FLAGS, "--save_path", tmp_path)
    assert result.returncode == 0, result.stderr
    saved = torch.load(tmp_path / "res_DM_toy_ConvNet_1ipc.pt", weights_only=True)
    assert len(saved["data"]) == 2
    for images, labels in saved["data"]:
        assert images.shape == (3, 3, 16, 16)
        assert images.dtype == torch.float32
        assert labels.tolist() == [0, 1, 2]
    assert not torch.equal(saved["data"][0][0], saved["data"][1][0])
    assert len(saved["accs_all_exps"]["ConvNet"]) == 2
    for iteration in (0, 3):
        with Image.open(tmp_path / f"vis_DM_toy_ConvNet_1ipc_exp1_iter{iteration}.png") as picture:
            assert picture.mode == "RGB"
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert lines[-2]["evaluation"] == "all 2 experiments"
    assert lines[-2]["accuracies"] == saved["accs_all_exps"]["ConvNet"]
    assert lines[-1]["saved"] == str(tmp_path / "res_DM_toy_ConvNet_1ipc.pt")
    losses = [line["loss"] for line in lines if line.get("progress") == "condense" and "loss" in line]
    assert len(losses) == 2

    for name in ("res_DM_toy_ConvNet_1ipc.pt", "DM_toy_ConvNet_1ipc_exp0/synthetic.safetensors"):
        facts = json.loads(command("inspect", tmp_path / name).stdout)
        assert facts["ipc"] == 1
    result = command(
        "evaluate", tmp_path / "DM_toy_ConvNet_1ipc_exp0" / "synthetic.safetensors", "--dataset", arrays,
        "--num-eval", "1", "--epoch-eval-train", "2",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert 0 <= json.loads(result.stdout.splitlines()[-1])["mean"] <= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "CIFAR1000"], "CIFAR1000"),
        (["--model", "ConvNeXt"], "unknown network 'ConvNeXt'"),
        (["--ipc", "0"], "ipc is 0"),
        (["--ipc", "21"], "use an ipc of at most 20"),
        (["--eval_mode", "Z"], "'Z'"),
        (["--dsa-strategy", "flip_blur"], "unknown augmentation 'blur'"),
        (["--init", "zeros"], "init is 'zeros'"),
        (["--profile", "2-x"], "profile is '2-x'"),
        (["--profile", "5-2"], "the first before the last"),
        (["--resume", "--overwrite"], "give one of them"),
        (["--profile", "3-4", "--Iteration", "4"], "profile is 3-4; it must lie within the run's iterations, 0-3"),
    ],
    ids=lambda value: "".join(value) if isinstance(value, list) else "",
)
def test_mistakes_are_one_sentence(
    arguments: list[str], message: str, arrays: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["condense", "--dataset", str(arrays), "--ipc", "1", "--save_path", str(tmp_path / "result"), *arguments]
    assert main(*words) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.startswith("fastdm: ")
    assert errors.count("\n") == 1
    assert not (tmp_path / "result").exists()


def test_an_unknown_flag() -> None:
    result = command("condense", "--ipcc", "1")
    assert result.returncode == 2
    assert "--ipcc" in result.stderr
    assert "Traceback" not in result.stderr


def test_inspect_of_no_set(tmp_path: Path) -> None:
    (tmp_path / "set.safetensors").write_bytes(b"nothing")
    for path in (tmp_path / "set.safetensors", tmp_path / "absent.pt"):
        result = command("inspect", path)
        assert result.returncode == 2
        assert path.name in result.stderr
        assert "Traceback" not in result.stderr


def test_interrupted_then_resumed(arrays: Path, tmp_path: Path) -> None:
    flags = ["condense", "--dataset", str(arrays), *PUBLIC_FLAGS, "--num_exp", "1", "--num_eval", "0"]
    flags += ["--Iteration", "100000", "--save_path", str(tmp_path)]
    process = started(*flags)
    log = tmp_path / "DM_toy_ConvNet_1ipc_exp0" / "log.jsonl"
    wait_for_losses(log, process)
    for _ in range(5):  # the first counts, and the others cost nothing
        os.kill(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    done = len(log.read_text().splitlines())
    assert errors == f"fastdm: stopped; iteration {done} is saved in {log.parent}: continue with --resume\n"

    result = command(*flags, "--Iteration", str(done + 2), "--resume")
    assert result.returncode == 0, result.stderr
    assert [json.loads(line)["iteration"] for line in log.read_text().splitlines()] == list(range(done + 2))


def test_a_batch_system_s_signals_leave_a_checkpoint_and_nohup_holds(arrays: Path, tmp_path: Path) -> None:
    flags = ["--dataset", arrays, *PUBLIC_FLAGS, "--num_exp", "1", "--num_eval", "0", "--Iteration", "100000"]
    ignoring = "signal.signal(signal.SIGHUP, signal.SIG_IGN)"
    process = started("condense", *flags, "--save_path", tmp_path, before=ignoring)
    log = tmp_path / "DM_toy_ConvNet_1ipc_exp0" / "log.jsonl"
    wait_for_losses(log, process)
    os.kill(process.pid, signal.SIGHUP)
    logged = len(log.read_text())
    while len(log.read_text()) == logged:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGUSR1)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGUSR1
    assert (log.parent / "checkpoint.json").exists()
    assert errors.startswith("fastdm: stopped; iteration ")


# --- in this process, which is quicker -------------------------------------------------------------------------------


def test_an_exhausted_memory_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It asks for memory that no address space holds."""
    monkeypatch.setattr("fastdm.cli.commands.app", lambda: torch.empty(1 << 60, dtype=torch.uint8))
    assert main() == 2
    errors = capsys.readouterr().err
    assert errors.startswith(
        "fastdm: the memory that this process may use is not enough for 1.0 EiB more; give it more"
    )
    assert errors.count("\n") == 1


def test_a_mistake_says_what_is_saved(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def app() -> None:
        error = FastDMError("the memory is not enough")
        error.add_note("iteration 7 is saved in result")
        raise error

    monkeypatch.setattr("fastdm.cli.commands.app", app)
    assert main() == 2
    assert capsys.readouterr().err == (
        "fastdm: the memory is not enough; iteration 7 is saved in result: continue with --resume\n"
    )


def printed(*arguments: str | Path) -> list[dict[str, Any]]:
    """The JSON lines of a command that goes well, without those of its progress."""
    result = CliRunner().invoke(cli.app, [*map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    return [line for line in lines if "progress" not in line]


def save_random(dataset: str | Path, path: Path, seed: int = 0, **settings: str) -> Path:
    """A set of random images, one per class, as one that was condensed with these settings."""
    dataclasses.replace(random_selection(dataset, 1, seed), settings=settings).save(path)
    return path


QUICK = ("--num_eval", "2", "--epoch_eval_train", "1", "--device", "cpu")


def test_evaluate_takes_the_data_set_and_the_network_from_the_file(tmp_path: Path) -> None:
    path = save_random("digits", tmp_path / "set.safetensors", network="ConvNetD2", strategy="crop")
    (line,) = printed("evaluate", path, *QUICK)
    assert (line["evaluation"], line["dataset"], line["network"]) == (str(path), "digits", "ConvNetD2")
    random_images = SyntheticSet.load(path)
    options = {"networks": ["ConvNetD2"], "strategy": "crop", "num_eval": 2, "epochs": 1, "device": "cpu"}
    assert line["accuracies"] == fastdm.evaluate(random_images, "digits", **options).accuracies["ConvNetD2"]
    public = save_random("digits", tmp_path / "res_DM_digits_MLP_1ipc.pt")
    (line,) = printed("evaluate", public, *QUICK)
    assert (line["dataset"], line["network"]) == ("digits", "MLP")
    (line,) = printed("evaluate", public, *QUICK, "--model", "ConvNetD1")
    assert line["network"] == "ConvNetD1"


def test_evaluate_refuses_another_data_set(arrays: Path, tmp_path: Path) -> None:
    for name in ("set.safetensors", "res_DM_toy_ConvNet_1ipc.pt"):
        path = save_random(arrays, tmp_path / name)
        message = f"{name} has 3 classes of 3x16x16 images, but data set digits has 10 classes of 1x8x8 images"
        with pytest.raises(FastDMError, match=message):
            printed("evaluate", path, "--dataset", "digits", *QUICK)
        with pytest.raises(FastDMError, match=f"{name} was condensed from data set toy; name with"):
            printed("evaluate", path, *QUICK)
        assert len(printed("evaluate", path, "--dataset", arrays, *QUICK)) == 1


def test_evaluate_takes_all_sets_of_a_file(arrays: Path, tmp_path: Path) -> None:
    sets = [random_selection(arrays, 1, seed) for seed in (0, 1)]
    path = tmp_path / "res_DM_toy_MLP_1ipc.pt"
    save_public(sets, path)
    words = ("evaluate", path, "--dataset", arrays, *QUICK, "--seed", "5")
    first, second, both = printed(*words)
    assert [line["evaluation"] for line in (first, second, both)] == [
        f"{path}, set 0",
        f"{path}, set 1",
        f"{path}, all 2 sets",
    ]
    assert both["accuracies"] == first["accuracies"] + second["accuracies"]
    assert both["mean"] == pytest.approx(np.mean(both["accuracies"]))
    assert both["std"] == pytest.approx(np.std(both["accuracies"]))
    seeded = fastdm.evaluate(sets[1], arrays, networks=["MLP"], num_eval=2, epochs=1, seed=6, device="cpu")
    assert second["accuracies"] == seeded.accuracies["MLP"]
    assert printed(*words, "--experiment", "1") == [second]
    with pytest.raises(FastDMError, match="holds 2 sets, counted from 0; there is no set 2"):
        printed(*words, "--experiment", "2")


def test_evaluate_writes_all_that_was_measured(tmp_path: Path) -> None:
    path, out = save_random("digits", tmp_path / "set.safetensors", network="MLP"), tmp_path / "new" / "found.json"
    line, saved = printed("evaluate", path, *QUICK, "--out", out)
    assert saved == {"saved": str(out)}
    content = json.loads(out.read_text())
    assert (content["dataset"], content["class_names"][9]) == ("digits", "9")
    found = content["evaluations"][str(path)]
    confusion = np.array(found["confusion"]["MLP"])
    assert confusion.sum() == 2 * 360
    assert confusion.trace() / confusion.sum() == pytest.approx(found["mean"]["MLP"])
    assert line["per_class"] == found["per_class"]["MLP"]
    assert line["top5"] == found["top5"]["MLP"]
    assert printed("evaluate", path, *QUICK, "--out", out) == [line, saved]  # again
    with pytest.raises(FastDMError, match="is a folder; name a file in it"):
        printed("evaluate", path, *QUICK, "--out", tmp_path)


@pytest.mark.parametrize(
    ("flags", "epochs"),
    [
        ([], 200),
        (["--epoch_eval_train", "50"], 50),
        (["--epoch_eval_train", "50", "--epoch_whole_set", "7"], 7),
        (["--epoch_whole_set", "300"], 300),
    ],
)
def test_the_whole_set_has_epochs_of_its_own(
    flags: list[str], epochs: int, arrays: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, int]] = []

    def found(train: Any, data: Any, protocol: Any, device: Any, progress: bool) -> Evaluation:
        asked.append((type(train).__name__, protocol.epochs))
        return Evaluation({"ConvNet": [0.5]})

    monkeypatch.setattr("fastdm.applications.measured_file.measure", found)
    path = save_random(arrays, tmp_path / "set.safetensors")
    lines = printed("evaluate", path, "--dataset", arrays, "--baselines", *flags)
    assert [line["evaluation"] for line in lines] == [str(path), "random real images", "whole set"]
    few = 50 if "50" in flags else 1000
    assert asked == [("SyntheticSet", few), ("SyntheticSet", few), ("Pool", epochs)]


@pytest.mark.parametrize(
    ("command", "flag", "value"),
    [
        ("condense", "--num_exp", "0"),
        ("condense", "--num_eval", "-1"),
        ("condense", "--save_every", "0"),
        ("condense", "--picture_every", "0"),
        ("condense", "--chunk_memory", "0"),
        ("condense", "--image_size", "0"),
        ("evaluate", "--num_eval", "0"),
        ("evaluate", "--epoch_whole_set", "0"),
        ("profile", "--iterations", "0"),
        ("pack", "--workers", "0"),
        ("pack", "--workers", "-1"),
    ],
)
def test_counts_that_make_no_sense(command: str, flag: str, value: str) -> None:
    files = {"evaluate": ["set.safetensors"], "pack": ["folder", "set.fastdm"]}.get(command, [])
    result = CliRunner().invoke(cli.app, [command, *files, flag, value])
    assert result.exit_code == 2
    assert f"Error: Invalid value for '{flag}': " in result.stderr


def test_images_of_a_folder_are_brought_to_one_size(tmp_path: Path) -> None:
    for part, count in (("train", 2), ("val", 1)):
        for label in ("ape", "bee"):
            (tmp_path / "zoo" / part / label).mkdir(parents=True)
            for number in range(count):
                shape = (10 + number, 9, 3)
                Image.fromarray(np.zeros(shape, np.uint8)).save(tmp_path / "zoo" / part / label / f"{number}.png")
    flags = ("--dataset", tmp_path / "zoo", "--image_size", "8")
    words = (
        "condense",
        *flags,
        "--ipc",
        "1",
        "--Iteration",
        "0",
        "--num_exp",
        "1",
        "--num_eval",
        "0",
        "--device",
        "cpu",
    )
    (line,) = printed(*words, "--save_path", tmp_path / "result")
    assert line["saved"] == str(tmp_path / "result" / "res_DM_zoo_ConvNet_1ipc.pt")
    (line,) = printed("evaluate", line["saved"], *flags, *QUICK)
    assert line["dataset"] == "zoo"


def test_profile_prints_one_object(arrays: Path, tmp_path: Path) -> None:
    words = ("profile", "--dataset", arrays, "--ipc", "1", "--batch_real", "4", "--iterations", "1", "--device", "cpu")
    (line,) = printed(*words, "--save_path", tmp_path)
    assert line == json.loads((tmp_path / "profile.json").read_text())
    assert line["device"] == "cpu"
    (tmp_path / "file").touch()
    with pytest.raises(FastDMError, match=r"file/profile cannot be written \(Not a directory\); choose another$"):
        printed(*words, "--save_path", tmp_path / "file" / "profile")


def test_pack_says_what_it_saved(arrays: Path, tmp_path: Path) -> None:
    assert printed("pack", arrays, tmp_path / "toy.fastdm") == [{"saved": str(tmp_path / "toy.fastdm")}]
    with pytest.raises(FastDMError, match=r"^\. cannot be written: it is a folder"):
        printed("pack", arrays, ".")


def test_help_names_the_defaults_and_needs_no_torch() -> None:
    result = command("condense", "--help")
    assert result.returncode == 0
    for text in ("--Iteration", "20000", "--lr_img", "--batch_real", "256", "[default: 50]"):
        assert text in result.stdout
    code = "import sys, fastdm.cli.commands; assert not {'torch', 'triton', 'torchvision'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def ok(*arguments: str | Path) -> list[str]:
    """The lines that a command prints."""
    result = command(*arguments)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def test_a_pool_then_the_recipe_then_the_other_protocol(tmp_path: Path) -> None:
    """`fastdm pool`, `condense --recipe trained`, `evaluate --protocol idc`: what is given replaces the recipe's."""
    pool = tmp_path / "pool.safetensors"
    common = ["--data_path", str(tmp_path), "--device", "cpu"]
    small = ["--epochs", "1", "--states", "3", "--networks", "1", "--model", "ConvNetD1"]
    saved = json.loads(ok("pool", pool, "--dataset", "digits", *small, *common)[-1])
    assert (saved["networks"], saved["states"]) == (1, 3)
    recipe = ["--recipe", "trained", "--pool", str(pool), "--iterations", "2", "--batch_real", "16"]
    sets = ["--num_exp", "1", "--num_eval", "0", "--save_path", str(tmp_path / "run"), "--dataset", "digits"]
    ok("condense", "--ipc", "1", *recipe, *sets, *common)
    folder = tmp_path / "run" / "DM_digits_ConvNetD1_1ipc_exp0"
    settings = json.loads((folder / "settings.json").read_text())
    assert (settings["partition"], settings["iterations"], settings["ce_weight"]) == (2, 2, 2.5)
    how = ["--protocol", "idc", "--num_eval", "1", "--epoch_eval_train", "2", "--checks", "2"]
    line = json.loads(ok("evaluate", folder / "synthetic.safetensors", *how, *common)[-1])
    assert line["best"][0] >= line["accuracies"][0]
