"""The compile gate: the real kernels pass on one target, and bad ones are caught.

Continuous integration runs the whole gate, `python -m fastdm.kernels.compile_check`, as a step of its own.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from bench import compile as compiled
from fastdm.kernels.blocks import triton_tiles as tiles
from fastdm.kernels.compile_check import TARGETS, Report, cases, faults, launches

ROOT = Path(__file__).parents[2]
BUDGET = ROOT / "bench" / "register_budget.json"

BAD_KERNELS = '''
import sys
import torch, triton
import triton.language as tl
from fastdm.kernels import compile_check, launch

@triton.jit
def spill_kernel(x_ptr, y_ptr, BLOCK: tl.constexpr):
    """More live values than a thread has registers."""
    offset = tl.arange(0, BLOCK)
    first = tl.load(x_ptr + offset)
    total = tl.sum(first)
    tl.store(y_ptr + offset, first * total)

@triton.jit
def narrow_kernel(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    """A step that is known at run time only: nothing is contiguous to the compiler."""
    offset = tl.arange(0, BLOCK)
    tl.store(y_ptr + offset * n, tl.load(x_ptr + offset * n))

def start(kernel, length, **arguments):
    x = torch.empty(length, dtype=torch.bfloat16, device="meta")
    launch.start(kernel, (1,), x_ptr=x, y_ptr=x, **arguments, BLOCK=length, num_warps=1)

cases = [
    compile_check.Case("spill", lambda: start(spill_kernel, 32768), 16),
    compile_check.Case("narrow", lambda: start(narrow_kernel, 1024, n=7), 16),
]
compile_check.cases = lambda: cases
if __name__ == "__main__":  # The workers import this file too.
    sys.exit(compile_check.main(["--targets", "sm_90", "--workers", "1", "--budget", sys.argv[1]]))
'''


def test_the_gate_fails_on_bad_kernels(tmp_path: Path) -> None:
    program, budget = tmp_path / "bad.py", tmp_path / "budget.json"
    program.write_text(BAD_KERNELS)  # Triton reads the source of a kernel from its file.
    budget.write_text('{"spill_kernel": 255, "narrow_kernel": 8}')
    process = subprocess.run([sys.executable, program, budget], capture_output=True, text=True)
    assert process.returncode == 1, process.stderr
    spill, narrow = process.stderr.splitlines()
    assert re.fullmatch(r"spill_kernel, spill, sm_90: \d+ spill operations", spill)
    assert re.fullmatch(
        r"narrow_kernel, narrow, sm_90: \d+ registers, budget 8; accesses of 16 bits, 128 are possible", narrow
    )


def test_the_augmentation_passes_on_one_target(tmp_path: Path) -> None:
    gate = ["-m", "fastdm.kernels.compile_check", "--targets", "sm_90", "--cases", "3x32² nhwc", "--workers", "2"]
    output = tmp_path / "kernels.json"
    command = [sys.executable, *gate, "--budget", BUDGET, "--json", output]
    process = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert process.returncode == 0, process.stderr
    reports = json.loads(output.read_text())
    assert {report["kernel"] for report in reports} == {"dsa_fwd_kernel", "dsa_bwd_kernel"}
    assert all(report["kernel"].removesuffix("_kernel") in process.stdout for report in reports)


def recorded() -> list[Report]:
    (result,) = compiled.SUITE.load()
    return [Report.of(row) for row in result["rows"]]


def test_the_recorded_reports_are_within_the_budget() -> None:
    reports, budget = recorded(), json.loads(BUDGET.read_text())
    assert {report.target for report in reports} == set(TARGETS)
    assert {report.case for report in reports} == {case.name for case in cases()}
    assert budget["dsa_fwd_kernel"] <= 72
    assert budget["dsa_bwd_kernel"] <= 80
    assert [fault for report in reports for fault in faults(report, budget)] == []


def test_without_a_budget_any_number_of_registers_passes() -> None:
    """Also for a kernel that takes more in one case than in the next."""
    by_kernel: dict[str, set[int]] = {}
    for report in recorded():
        by_kernel.setdefault(report.kernel, set()).add(report.registers)
        assert faults(report, None) == []
    assert any(len(numbers) > 1 for numbers in by_kernel.values())


def test_the_augmentation_is_one_launch() -> None:
    found = [[kernel.__name__ for kernel, _, _ in launches(case)] for case in cases() if case.name.startswith("dsa")]
    assert len(found) == 14
    assert all(kernels in (["dsa_fwd_kernel"], ["dsa_bwd_kernel"]) for kernels in found)


def test_an_image_of_one_tile_is_read_once_and_others_twice() -> None:
    """The kernel reads its image twice in the source; for one tile the loads of the machine code must be its bytes."""
    passes = {}
    for report in recorded():
        sizes = re.fullmatch(r"norm_relu_pool (bf16|fp32) 128x(\d+)² (nchw|nhwc)", report.case)
        if sizes is None or report.kernel != "norm_relu_pool_fwd_kernel" or report.target == "gfx942":
            continue
        dtype, size, layout = {"bf16": torch.bfloat16, "fp32": torch.float32}[sizes[1]], int(sizes[2]), sizes[3]
        x = torch.empty(1, 128, size, size, dtype=dtype, device="meta")
        x = x.contiguous(memory_format=torch.channels_last) if layout == "nhwc" else x
        tile = tiles.choose_tile(x)
        loaded = report.loads["128"] * 16 * 32 * report.warps
        passes[size, dtype, layout] = 1 if tile.total <= tile.windows else 2
        assert loaded == passes[size, dtype, layout] * 4 * tile.windows * tile.channels * dtype.itemsize, report.case
    assert len(passes) == 10
    assert [case for case, count in passes.items() if count == 2] == [(64, torch.bfloat16, "nhwc")]
