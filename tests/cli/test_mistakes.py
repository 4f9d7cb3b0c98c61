"""Bad input to every command: one clear sentence, exit code 2, and no file written, changed or lost."""

import shlex
from pathlib import Path

import pytest

import fastdm
from fastdm.cli.commands import COMMANDS
from tests.cli.test_cli import main

DIGITS = "--dataset digits --device cpu --ipc 1"
SPACE = "--depth 1 --width 32 --activation relu --norm none,instance"

MISTAKES: dict[str, list[tuple[str, str]]] = {
    "condense": [
        (f"{DIGITS} --lr_img nan", "lr_img is nan; it must be above 0 and finite"),
        (f"{DIGITS} --epoch_eval_train 0", "epochs is 0; it must be a whole number of at least 1"),
        ("--dataset digits --device tpu", "device 'tpu' is unknown; it must be cpu, cuda, or cuda:1 and so on"),
        (f"{DIGITS} --num_eval 0 --protocol foo", "protocol is 'foo'; it must be one of 'dm', 'idc'"),
        (
            f"{DIGITS} --num_eval 0 --eval_mode Z",
            "unknown evaluation mode 'Z'; choose one of M, B, W, D, A, P, N, S, SS",
        ),
        (f"{DIGITS} --eval_every 5 --num_eval 0", "eval_every needs networks to evaluate with: num_eval is 0"),
        (f"{DIGITS} --save_path junk.pt", "the folder junk.pt cannot be written (File exists); choose another"),
    ],
    "evaluate": [
        ("absent.safetensors", "absent.safetensors cannot be read: No such file or directory"),
        ("junk.pt --dataset digits", "junk.pt is not a .pt file, or is damaged"),
        ("run", "run is a folder; it must be a regular file"),
        ("set.safetensors --eval_mode Z", "unknown evaluation mode 'Z'; choose one of M, B, W, D, A, P, N, S, SS"),
        ("set.safetensors --labels soft", "labels is 'soft', which takes them from a pool of trained networks"),
        ("set.safetensors --lr_net -1", "lr_net is -1.0; it must be above 0, and finite"),
        ("set.safetensors --pool absent", "absent is not a pool of trained networks, or is damaged: No such file"),
        ("set.safetensors --experiment 4", "set.safetensors holds 1 set, counted from 0; there is no set 4"),
        ("set.safetensors -o set.safetensors", "set.safetensors is there already and was not written by this command"),
        ("set.safetensors -o junk.pt/x.json", "the folder junk.pt cannot be written (File exists); choose another"),
    ],
    "continual": [
        ("--dataset nosuch", "unknown data set 'nosuch'; choose one of MNIST,"),
        (f"{DIGITS} --orders 0", "Invalid value for '--orders'"),
        (f"{DIGITS} --method ,", "there is no method; name some of DM, random, herding"),
        (f"{DIGITS} --steps 10 --method herding", "there must be at least two in each"),
        (f"{DIGITS} --iterations -1", "iterations is -1; it must be a whole number of at least 0"),
        (f"{DIGITS} --save_path junk.pt", "the folder junk.pt cannot be written (File exists); choose another"),
    ],
    "search": [
        (f"{DIGITS} --depth 9", "depth is 9; it must be one of 1, 2, 3, 4"),
        (f"{DIGITS} --depth ,", "depth has no values; name some of 1, 2, 3, 4"),
        (f"{DIGITS} {SPACE} --proxy ,", "there is no proxy; name some of condensed, random, early_stopped"),
        (f"{DIGITS} --networks 1", "networks is 1; it must be at least 2, and at most 720, which is all"),
        (f"{DIGITS} {SPACE} --save_path junk.pt", "the folder junk.pt cannot be written (File exists)"),
    ],
    "export": [
        ("absent.safetensors out", "absent.safetensors cannot be read: No such file or directory"),
        ("set.safetensors full", "full is there already and is not an empty folder; choose another"),
        ("set.safetensors colours.npz", "colours.npz is there already: overwrite it, or choose another (--overwrite)"),
        ("set.safetensors out.zip", "out.zip ends in .zip; it must be a folder, or end in .npz, .pt or .safetensors"),
        ("set.safetensors out --measure --epoch_eval_train 0", "epochs is 0; it must be a whole number of at least 1"),
        ("set.safetensors out --measure --dataset colours.npz", "but data set colours has 2 classes of 3x8x8 images"),
    ],
    "inspect": [
        ("absent", "absent cannot be read: No such file or directory"),
        ("full", "full is not a run folder: it has no settings.json that could be read"),
        ("junk.pt", "junk.pt is not a .pt file, or is damaged"),
    ],
    "pack": [
        ("absent out.fastdm", "unknown data set 'absent'; choose one of MNIST,"),
        ("full out.fastdm", "full holds no class folders; it must hold one folder of images for each class"),
        ("digits colours.npz", "colours.npz is there already: overwrite it, or choose another file (--overwrite)"),
        ("digits out.fastdm --size 0", "size is 0; it must be a whole number of at least 1"),
        ("digits out.fastdm --fit stretch", "fit 'stretch' is not one of squash, center_crop"),
    ],
    "plan": [
        ("--device tpu", "unknown device 'tpu'; choose one of cpu, cuda, RTX3090"),
        ("--no_calibrate --ranks 0", "ranks is 0; it must be at least 1 and at most 10, one per class"),
        ("--classes 10", "a data set that is not here needs all of --classes, --images and --size"),
        ("full", "full is a folder, whose images would have to be read: pack it first (fastdm pack)"),
        ("--preset nosuch", "unknown preset 'nosuch'; choose one of cifar10"),
    ],
    "pool": [
        ("pool.pt --dataset digits", "pool.pt must end in .safetensors"),
        ("set.safetensors --dataset digits", "set.safetensors already exists: resume it, overwrite it, or choose"),
        (
            "new.safetensors --dataset digits --epochs 1 --states 40",
            "states is 40, but trainings of 23 updates have 24",
        ),
        ("new.safetensors --dataset digits --lr_net 0", "lr_net is 0.0; it must be above 0, and finite"),
        ("junk.pt/new.safetensors --dataset digits", "the folder junk.pt cannot be written (File exists)"),
    ],
    "profile": [
        ("--dataset nosuch", "unknown data set 'nosuch'; choose one of MNIST,"),
        ("--dataset digits --ipc 0", "ipc is 0; it must be a whole number of at least 1"),
        (f"{DIGITS} --backend cuda", "backend is 'cuda'; it must be 'auto', 'triton' or 'reference'"),
        (f"{DIGITS} --save_path junk.pt", "the folder junk.pt cannot be written (File exists); choose another"),
    ],
    "report": [
        ("absent", "absent is neither a run folder, which has a settings.json, nor a folder of run folders"),
        ("run --baselines", "run was not evaluated, so baselines have no protocol to follow"),
        ("run -o full", "full is a folder; name a file in it"),
        ("run -o junk.pt", "junk.pt is there already and was not written by this command; name another file"),
        ("run --dataset colours.npz", "the run run has 10 classes of 1x8x8 images, but data set colours has 2 classes"),
        ("run --baselines -o junk.pt/page.html", "the folder junk.pt cannot be written (File exists)"),
    ],
    "list": [
        ("", "Missing argument 'KIND'"),
        ("nosuch", "'nosuch' is not one of 'networks', 'datasets', 'augmentations', 'presets'"),
        ("networks datasets", "Got unexpected extra argument"),
    ],
    "env": [
        ("extra", "Got unexpected extra argument"),
        ("--foo", "No such option"),
        ("--versio", "No such option"),
    ],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A condensed set, a run, a data set of another shape, a file that is nothing, and a folder with a user's file."""
    import numpy as np

    folder = tmp_path_factory.mktemp("mistakes")
    fastdm.random_selection("digits", 1).save(folder / "set.safetensors")
    options = {"iterations": 1, "batch_real": 4, "network": "ConvNetD1", "device": "cpu"}
    fastdm.condense("digits", 1, save_path=folder / "run", **options)
    images, labels = np.zeros((4, 8, 8, 3), np.uint8), np.arange(4) % 2
    np.savez(folder / "colours.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    (folder / "junk.pt").write_bytes(b"nothing")
    (folder / "full").mkdir()
    (folder / "full" / "mine.txt").write_text("keep")
    return folder


def contents(folder: Path) -> dict[Path, bytes | None]:
    """Every file with its bytes, and every folder."""
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.mark.parametrize(
    ("words", "message"),
    [pytest.param(f"{name} {words}", message, id=f"{name} {words}") for name, all_of_it in MISTAKES.items()
     for words, message in all_of_it],
)  # fmt: skip
def test_a_mistake_is_one_sentence_and_changes_nothing(
    words: str, message: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    before = contents(folder)
    assert main(*shlex.split(words)) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    *usage, sentence = printed.err.splitlines()
    if usage:  # the option parser's own
        assert usage[0].startswith("Usage: ")
        assert sentence.startswith("Error: ")
    else:
        assert sentence.startswith("fastdm: ")
    assert contents(folder) == before


def test_every_command_has_at_least_three() -> None:
    assert MISTAKES.keys() == COMMANDS.keys()
    assert min(map(len, MISTAKES.values())) >= 3
