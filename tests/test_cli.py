"""The command as a user types it, in a process of its own."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

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


def fastdm(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
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
    result = fastdm("condense", "--dataset", arrays, *PUBLIC_FLAGS, "--save_path", tmp_path)
    assert result.returncode == 0, result.stderr
    saved = torch.load(tmp_path / "res_DM_toy_ConvNet_1ipc.pt", weights_only=True)
    assert len(saved["data"]) == 2
    for images, labels in saved["data"]:
        assert images.shape == (3, 3, 16, 16)
        assert images.dtype == torch.float32
        assert labels.tolist() == [0, 1, 2]
    assert not torch.equal(saved["data"][0][0], saved["data"][1][0])
    assert len(saved["accs_all_exps"]["ConvNet"]) == 2
    with Image.open(tmp_path / "vis_DM_toy_ConvNet_1ipc_exp1_iter3.png") as picture:
        assert picture.mode == "RGB"
    lines = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]
    losses = [line["loss"] for line in lines if line.get("progress") == "condense" and "loss" in line]
    assert len(losses) == 2

    for name in ("res_DM_toy_ConvNet_1ipc.pt", "DM_toy_ConvNet_1ipc_exp0/synthetic.safetensors"):
        facts = json.loads(fastdm("inspect", tmp_path / name).stdout)
        assert facts["ipc"] == 1
    result = fastdm(
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
        (["--profile", "3-4", "--Iteration", "4"], "it must lie within the run's iterations, range(0, 4)"),
    ],
    ids=lambda value: "".join(value) if isinstance(value, list) else "",
)
def test_mistakes_are_one_sentence(arguments: list[str], message: str, arrays: Path, tmp_path: Path) -> None:
    result = fastdm("condense", "--dataset", arrays, "--save_path", tmp_path / "result", *arguments)
    assert result.returncode == 2
    assert message in result.stderr
    assert result.stderr.startswith("fastdm: ")
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "result").exists()


def test_an_unknown_flag() -> None:
    result = fastdm("condense", "--ipcc", "1")
    assert result.returncode == 2
    assert "--ipcc" in result.stderr
    assert "Traceback" not in result.stderr


def test_inspect_of_no_set(tmp_path: Path) -> None:
    (tmp_path / "set.safetensors").write_bytes(b"nothing")
    for path in (tmp_path / "set.safetensors", tmp_path / "absent.pt"):
        result = fastdm("inspect", path)
        assert result.returncode == 2
        assert path.name in result.stderr
        assert "Traceback" not in result.stderr


def test_interrupted_then_resumed(arrays: Path, tmp_path: Path) -> None:
    flags = ["condense", "--dataset", str(arrays), *PUBLIC_FLAGS, "--num_exp", "1", "--num_eval", "0"]
    flags += ["--Iteration", "100000", "--save_path", str(tmp_path)]
    process = subprocess.Popen(
        [sys.executable, "-m", "fastdm", *flags], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    log = tmp_path / "DM_toy_ConvNet_1ipc_exp0" / "log.jsonl"
    deadline = time.monotonic() + 120
    while not (log.exists() and log.read_text()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert errors == "fastdm: stopped; condense and pack go on with --resume\n"
    assert process.returncode == 130

    done = len(log.read_text().splitlines())
    result = fastdm(*flags, "--Iteration", str(done + 2), "--resume")
    assert result.returncode == 0, result.stderr
    assert [json.loads(line)["iteration"] for line in log.read_text().splitlines()] == list(range(done + 2))


def test_help_names_the_defaults_and_needs_no_torch() -> None:
    result = fastdm("condense", "--help")
    assert result.returncode == 0
    for text in ("--Iteration", "20000", "--lr_img", "--batch_real", "256"):
        assert text in result.stdout
    code = "import sys, fastdm.cli; assert not {'torch', 'triton', 'torchvision'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
