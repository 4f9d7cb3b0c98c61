"""The bytes that the ops move, counted, within what they are meant to."""

import json
import subprocess
import sys

import pytest

from bench import traffic
from bench.harness.machine import REPOSITORY
from bench.harness.records import Row

pytest.importorskip("triton")
PROGRAM = "import json; from bench import traffic; print(json.dumps([*traffic.measure()]))"


@pytest.fixture(scope="module")
def rows() -> dict[str, Row]:
    """Counted in a process of its own, where the kernels are interpreted."""
    process = subprocess.run([sys.executable, "-c", PROGRAM], cwd=REPOSITORY, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    return {row["name"]: row for row in json.loads(process.stdout)}


def test_every_output_is_written_once(rows: dict[str, Row]) -> None:
    for mode in ("S", "M"):
        assert rows[f"dsa uint8 → bfloat16, mode {mode}"]["written"] == 0.5
        assert rows[f"dsa float32, mode {mode}"]["written"] == 1
        assert rows[f"dsa gradient, float32, mode {mode}"]["written"] == 1


@pytest.mark.parametrize(
    ("name", "most"),
    [
        # A quarter of the batch in float32 is read, and per image 12 parameters, its number and its row's.
        ("dsa uint8 → bfloat16, mode S", 0.76),
        ("dsa uint8 → bfloat16, mode M", 0.76),
        ("dsa float32, mode S", 2.01),
        ("dsa float32, mode M", 2.01),
        ("dsa gradient, float32, mode S", 2.01),
        ("dsa gradient, float32, mode M", 2.01),
        # Per channel two statistics of 4 bytes, for 2,048 bytes of input.
        ("norm_relu_pool", 1.255),
        # Input and a quarter as large a gradient read, a gradient written; two statistics per channel.
        ("norm_relu_pool, gradient", 2.255),
        # Tiles read a part of each pixel, and every image twice: memory sees neither.
        ("norm_relu_pool 64², reads of memory in 32 B", 1.0),
        ("norm_relu_pool 64², reads of memory in 64 B", 1.0),
        ("norm_relu_pool, gradient 64², reads of memory in 32 B", 1.252),
        ("norm_relu_pool, gradient 64², reads of memory in 64 B", 1.252),
        # The convolution written and read, the image and its weights read, a quarter written.
        ("conv_norm_relu_pool, first convolution stored", 2.3),
        # The image read, its padded copy of a third more numbers written and read twice, a quarter written; per channel
        # two statistics, written and read. A quarter of it is the arranged weights, written and read twice, which a
        # batch of more than two images shares.
        ("conv_norm_relu_pool, first convolution computed twice", 0.55),
        # A partial sum in float32 for every four images of a class, each a quarter of the pixels in bfloat16.
        ("norm_relu_pool_mean", 1.13),
        # One difference in float32 for the 64 values of a class and feature, and a partial sum of squares.
        ("class_mean_difference", 1.02),
    ],
)
def test_no_op_moves_more_than_it_must(name: str, most: float, rows: dict[str, Row]) -> None:
    assert rows[name]["ours"] <= most


def test_plain_pytorch_moves_several_times_as_much(rows: dict[str, Row]) -> None:
    for name, least in (("dsa float32, mode S", 7), ("dsa float32, mode M", 45), ("norm_relu_pool", 5)):
        assert rows[name]["eager"] >= least


def test_the_committed_table_is_what_the_code_gives(rows: dict[str, Row]) -> None:
    for result in traffic.SUITE.load():
        for row in result["rows"]:
            assert (row["read"], row["written"]) == (rows[row["name"]]["read"], rows[row["name"]]["written"])


def test_counting_refuses_a_process_in_which_the_kernels_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", sys.modules[__name__])
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(RuntimeError, match="a process of its own"):
        traffic.interpret()
