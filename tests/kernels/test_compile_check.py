"""The compile gate: the real kernels pass on one target, and bad ones are caught.

Continuous integration runs the whole gate, ``python -m fastdm.kernels.compile_check``, as a step of its own.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from fastdm.kernels import norm_relu_pool_triton
from fastdm.kernels.compile_check import TARGETS, Report, cases, faults

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "bench" / "results" / "compile"

BAD_KERNELS = '''
import dataclasses, json, sys
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

def start(kernel, length, *args):
    x = torch.empty(length, dtype=torch.bfloat16, device="meta")
    launch.start(kernel, (1,), x, x, *args, BLOCK=length, num_warps=1)

cases = [
    compile_check.Case("spill", lambda: start(spill_kernel, 32768), 16),
    compile_check.Case("narrow", lambda: start(narrow_kernel, 1024, 7), 16),
]
compile_check.cases = lambda: cases
for number in (0, 1):
    (report,) = compile_check.compile_case(number, "sm_90")
    print(json.dumps(compile_check.faults(report, {"spill_kernel": 255, "narrow_kernel": 8})))
'''


def test_bad_kernels_are_caught(tmp_path):
    program = tmp_path / "bad.py"  # Triton reads the source of a kernel from its file.
    program.write_text(BAD_KERNELS)
    process = subprocess.run([sys.executable, program], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    spill, narrow = map(json.loads, process.stdout.splitlines())
    assert any("spill operations" in fault for fault in spill)
    assert any("accesses of 16 bits, 128 are possible" in fault for fault in narrow)
    assert any("registers, budget 8" in fault for fault in narrow)


def test_the_augmentation_passes_on_one_target(tmp_path):
    gate = ["-m", "fastdm.kernels.compile_check", "--targets", "sm_90", "--cases", "3x32² nhwc", "--workers", "2"]
    output = tmp_path / "kernels.json"
    command = [sys.executable, *gate, "--budget", RESULTS / "budget.json", "--json", output]
    process = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert process.returncode == 0, process.stderr
    reports = json.loads(output.read_text())["reports"]
    assert {report["kernel"] for report in reports} == {"dsa_fwd_kernel", "dsa_bwd_kernel"}
    assert all(report["kernel"].removesuffix("_kernel") in process.stdout for report in reports)


def test_the_recorded_reports_are_within_the_budget():
    record = json.loads((RESULTS / "kernels.json").read_text())
    budget = json.loads((RESULTS / "budget.json").read_text())
    reports = [Report(**report) for report in record["reports"]]
    assert {report.target for report in reports} == set(TARGETS)
    assert {report.case for report in reports} == {case.name for case in cases()}
    assert budget["dsa_fwd_kernel"] <= 64
    assert budget["dsa_bwd_kernel"] <= 80
    assert [fault for report in reports for fault in faults(report, budget)] == []


def test_an_image_of_one_tile_is_read_once():
    """The kernel reads its image three times in the source; the loads of the machine code must be one tile's bytes."""
    record = json.loads((RESULTS / "kernels.json").read_text())
    seen = set()
    for report in record["reports"]:
        sizes = re.fullmatch(r"norm_relu_pool (bf16|fp32) 128x(\d+)² (nchw|nhwc)", report["case"])
        if sizes is None or report["kernel"] != "norm_relu_pool_fwd_kernel" or report["target"] == "gfx942":
            continue
        dtype, size, layout = {"bf16": torch.bfloat16, "fp32": torch.float32}[sizes[1]], int(sizes[2]), sizes[3]
        x = torch.empty(1, 128, size, size, dtype=dtype, device="meta")
        x = x.contiguous(memory_format=torch.channels_last) if layout == "nhwc" else x
        tile = norm_relu_pool_triton._tile(x, 2 * norm_relu_pool_triton._ROOM)
        assert tile.TOTAL <= tile.WINDOWS
        loaded = report["loads"]["128"] * 16 * 32 * report["warps"]
        assert loaded == tile.CHANNELS * size * size * dtype.itemsize, report["case"]
        seen.add((size, dtype, layout))
    assert len(seen) == 10
