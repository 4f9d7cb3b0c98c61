"""Output that a terminal, a pipe or a full disk takes, or does not."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from rich.file_proxy import FileProxy
from typer.testing import CliRunner

import fastdm
from fastdm import cli
from fastdm.cli import output
from fastdm.evaluation.outcome import Evaluation
from fastdm.system import progress, streams
from fastdm.system.streams import Output
from fastdm.system.text import printable, size_text


def to_closed_pipe() -> io.TextIOWrapper:
    reader, writer = os.pipe()
    os.close(reader)
    return io.TextIOWrapper(open(writer, "wb"), "utf-8")


def test_an_output_that_nobody_reads_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    stream = Output(to_closed_pipe())
    for _ in range(3):
        print("a line", file=stream, flush=True)
    assert isinstance(stream.lost, BrokenPipeError)
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1
    assert errors.startswith("fastdm: the output cannot be written any more (nobody reads it)")


def test_a_full_output_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    stream = Output(io.TextIOWrapper(open("/dev/full", "wb"), "utf-8"))  # noqa: SIM115
    print("a line" * 10_000, file=stream, flush=True)
    print("a line", file=stream, flush=True)
    assert capsys.readouterr().err.startswith("fastdm: the output cannot be written any more (No space left on device)")


def test_what_an_encoding_lacks_is_escaped() -> None:
    raw = io.BytesIO()
    stream = Output(io.TextIOWrapper(raw, "ascii"))
    print("±\udcff", file=stream, flush=True)
    assert raw.getvalue() == b"\\xb1\\udcff\n"


def test_what_the_profiler_prints_goes_to_a_file(tmp_path: Path) -> None:
    """In a process of its own: Kineto speaks when it is first used."""
    words = "profile --dataset digits --ipc 1 --batch_real 4 --iterations 1 --device cpu"
    start = [sys.executable, "-m", "fastdm", *words.split(), "--save_path", str(tmp_path)]
    result = subprocess.run(start, capture_output=True, text=True, timeout=300, check=True)
    assert result.stderr == ""
    assert len(result.stdout.splitlines()) == 1


@pytest.mark.parametrize(("target", "code"), [("/dev/full", 1), ("pipe", 0), ("closed", 0)])
def test_a_run_goes_on_without_its_output(target: str, code: int, tmp_path: Path) -> None:
    words = "condense --dataset digits --ipc 1 --Iteration 3 --batch_real 4 --num_exp 1 --num_eval 0 --device cpu"
    start = [sys.executable, "-m", "fastdm", *words.split(), "--save_path", str(tmp_path)]
    stdout = {"/dev/full": ">/dev/full", "pipe": "| head -c 1 >/dev/null", "closed": ">&-"}[target]
    script = f'"$@" {stdout}; exit "${{PIPESTATUS[0]}}"'
    result = subprocess.run(["bash", "-c", script, "bash", *start], stderr=subprocess.PIPE, text=True, timeout=300)
    assert result.returncode == code, result.stderr
    assert result.stderr.count("\n") == (0 if target == "closed" else 1)
    assert "Traceback" not in result.stderr
    assert fastdm.SyntheticSet.load(tmp_path / "DM_digits_ConvNet_1ipc_exp0" / "synthetic.safetensors").ipc == 1
    assert (tmp_path / "res_DM_digits_ConvNet_1ipc.pt").exists()
    kept = json.loads((tmp_path / "DM_digits_ConvNet_1ipc_exp0" / "settings.json").read_text())
    assert kept["ipc"] == 1  # no file has got what should have been printed


def test_a_closed_standard_error_leaves_the_output_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    streams.complain("a sentence")
    assert capsys.readouterr().out == ""


def test_forced_colours_change_no_json(tmp_path: Path) -> None:
    fastdm.random_selection("digits", 1).save(tmp_path / "set.safetensors")
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE"):
        result = CliRunner().invoke(cli.app, ["inspect", str(tmp_path / "set.safetensors")], env={name: "1"})
        assert json.loads(result.stdout)["ipc"] == 1


# --- what a terminal gets


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (output, progress, streams):
        monkeypatch.setattr(module, "on_terminal", lambda: True)


HOSTILE = "[red]a[/red] [/] \x1b[31m\x07\r\nb\udcff"


@pytest.mark.usefixtures("terminal")
def test_names_are_shown_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_facts(HOSTILE, {HOSTILE: [HOSTILE]})
    output.print_evaluation(HOSTILE, Evaluation({"ConvNet": [0.5]}))
    output.print_saved(Path(HOSTILE))
    bar = progress.Progress("condense", 2)
    with bar:
        bar.say(HOSTILE)
    text = capsys.readouterr().out.replace("\n", "")
    assert text.count("[red]a[/red]") == 6
    assert "\x07" not in text
    assert "\x1b[31m" not in text
    assert text.count(r"\x1b[31m\x07\r\nb\udcff") >= 2


@pytest.mark.usefixtures("terminal")
def test_many_names_are_counted() -> None:
    names = [f"class {number}" for number in range(1000)]
    assert output.shown(names).endswith(", class 7, … (1,000 in all)")
    assert output.shown({"train": {"images": 50_000}}) == "train: images: 50,000"
    assert output.shown([True, 2.5, None]) == "True, 2.5, None"
    assert output.shown([{"ipc": 1, "seed": 0}, {"ipc": 1, "seed": 1}]) == "ipc: 1\nseed: 0\n\nipc: 1\nseed: 1"


@pytest.mark.usefixtures("terminal")
def test_the_total_is_in_the_public_code_s_words(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_total(Evaluation({"MLP": [0.5, 0.25]}), 2, "ConvNet", "CIFAR10")
    assert (
        "Run 2 experiments, train on ConvNet, evaluate 2 random MLP, mean  = 37.50%  std = 12.50%"
        in capsys.readouterr().out
    )


def test_a_spread_has_its_sign_also_while_a_bar_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.TextIOWrapper(io.BytesIO(), "utf-8")
    monkeypatch.setattr(sys, "stdout", FileProxy(Console(file=screen), screen))
    assert output.percent(0.5, 0.25) == "50.00 ± 25.00"
    plain = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr(sys, "stdout", plain)
    assert output.percent(0.5, 0.25) == "50.00 +- 25.00"


def test_texts_and_sizes() -> None:
    assert printable("plain é ± 漢") == "plain é ± 漢"
    assert printable("a\tb\x9b\u202e") == r"a\tb\x9b\u202e"
    sizes = {0: "0 bytes", 1: "1 byte", 1023: "1023 bytes", 1024: "1.0 KiB", 10 << 20: "10 MiB", 18_000 << 30: "18 TiB"}
    assert {count: size_text(count) for count in sizes} == sizes
