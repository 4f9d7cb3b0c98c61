"""The tests of the ops once more, with the Triton kernels interpreted: a process of its own, as triton reads the
variable when it is imported."""

import os
import subprocess
import sys
from pathlib import Path

OPS = Path(__file__).parent / "ops"


def test_the_ops_hold_with_interpreted_kernels():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--show-capture=no", str(OPS)]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    lane = subprocess.run(command, env=environment, cwd=OPS.parents[2], capture_output=True, text=True)
    assert lane.returncode == 0, lane.stdout[-10_000:] + lane.stderr[-2_000:]
