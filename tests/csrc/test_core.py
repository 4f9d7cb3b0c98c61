"""Builds and runs core_test.cpp, which tests the headers without Python."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
COMPILER = os.environ.get("CXX") or shutil.which("c++")


@pytest.mark.skipif(COMPILER is None, reason="there is no C++ compiler")
def test_the_headers(tmp_path: Path) -> None:
    program = tmp_path / "core_test"
    options = ["-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off", "-pthread"]
    sources = ["-I", str(HERE.parents[1] / "csrc"), str(HERE / "core_test.cpp")]
    subprocess.run([str(COMPILER), *options, *sources, "-o", str(program)], check=True)
    assert subprocess.run([program], capture_output=True, text=True, check=True).stdout == "ok\n"
