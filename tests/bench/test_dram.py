"""What Nsight Compute prints, read; a GPU is not needed for that."""

import os
import shutil
from pathlib import Path

import pytest
import torch

from bench.harness import dram
from bench.harness.workloads import CPU

PRINTED = """==PROF== Connected to process 7
{"any": "program's own line"}
"ID","Process ID","Kernel Name","Device","Section Name","Metric Name","Metric Unit","Metric Value"
"0","7","uniform_kernel","0","Command line profiler metrics","dram__bytes_read.sum","byte","96"
"0","7","uniform_kernel","0","Command line profiler metrics","dram__bytes_write.sum","byte","0"
"1","7","norm_relu_pool_fwd_kernel","0","Command line profiler metrics","dram__bytes_read.sum","byte","1,048,576"
"1","7","norm_relu_pool_fwd_kernel","0","Command line profiler metrics","dram__bytes_write.sum","byte","262144"
"2","7","uniform_kernel","0","Command line profiler metrics","dram__bytes_read.sum","byte","96"
"2","7","uniform_kernel","0","Command line profiler metrics","dram__bytes_write.sum","byte","0"
"3","7","conv_statistics_kernel","0","Command line profiler metrics","dram__bytes_read.sum","byte","10"
"3","7","conv_statistics_kernel","0","Command line profiler metrics","dram__bytes_write.sum","byte","1"
"4","7","conv_norm_relu_pool_kernel","0","Command line profiler metrics","dram__bytes_read.sum","byte","20"
"4","7","conv_norm_relu_pool_kernel","0","Command line profiler metrics","dram__bytes_write.sum","byte","2"
"""


def test_the_kernels_behind_a_marker_are_those_of_a_call() -> None:
    assert dram.counted(PRINTED) == [
        {"read": 1048576, "written": 262144, "kernels": 1},
        {"read": 30, "written": 3, "kernels": 2},
    ]
    assert dram.counted("==ERROR== ERR_NVGPUCTRPERM") == []


@pytest.fixture
def profiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program in the place of ncu, which is still to be written."""
    program = tmp_path / "ncu"
    program.touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    return program


def test_calls_are_compared_with_the_least(profiler: Path) -> None:
    profiler.write_text(f"#!/bin/sh\ncat <<'END'\n{PRINTED}END\n")
    rows = [*dram.rows(["-m", "program"], {"norm": 1_048_576, "conv": 33}, torch.device("cuda"), 60)]
    assert [(row["name"], row["times_least"]) for row in rows] == [("norm", 1.25), ("conv", 1.0)]


def test_it_is_said_why_nothing_was_counted(profiler: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    profiler.write_text("#!/bin/sh\necho '==ERROR== ERR_NVGPUCTRPERM'\nexit 1\n")
    (row,) = dram.rows([], {"norm": 1}, torch.device("cuda"), 60)
    assert "ERR_NVGPUCTRPERM" in row["note"]
    (profiler.parent / "timeout").symlink_to(shutil.which("timeout") or "")
    profiler.unlink()
    monkeypatch.setenv("PATH", str(profiler.parent))
    (row,) = dram.rows([], {"norm": 1}, torch.device("cuda"), 60)
    assert "failed to run command" in row["note"]
    (row,) = dram.rows([], {"norm": 1}, CPU, 60)
    assert row["note"] == "this device is not a GPU"


def test_what_was_counted_in_time_is_kept(profiler: Path) -> None:
    profiler.write_text(f"#!/bin/sh\ncat <<'END'\n{PRINTED}END\nexec sleep 60\n")
    rows = [*dram.rows([], {"norm": 1_048_576, "conv": 33}, torch.device("cuda"), 1)]
    assert len(rows) == 2
