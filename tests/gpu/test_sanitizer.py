"""A step of the compiled kernels under compute-sanitizer, which takes its time: the last of the tests on a GPU."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SECONDS = 150
SANITIZER = shutil.which("compute-sanitizer", path=os.pathsep.join([os.environ["PATH"], "/usr/local/cuda/bin"]))
STEP = """
import torch
from tests.gpu import test_kernels as t
generator = torch.Generator().manual_seed(0)
batch = t.cifar_batch(generator)
synthetic = torch.randn(10, 3, 32, 32, generator=generator).to(t.CUDA).requires_grad_()
t.step(*batch, synthetic)
torch.cuda.synchronize()
"""


@pytest.mark.skipif(SANITIZER is None, reason="compute-sanitizer is not installed")
@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_the_sanitizer_finds_nothing(tool: str, tmp_path: Path) -> None:
    # Without caching, so that every tensor is an allocation of its own that memcheck can watch.
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    # Libraries try calls that fail: what is looked for are the errors of kernels.
    command = [str(SANITIZER), "--tool", tool, "--error-exitcode", "9", "--report-api-errors", "no"]
    with (tmp_path / "log").open("w+") as log:
        process = subprocess.Popen(
            [*command, sys.executable, "-c", STEP], cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            end = process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            end = process.wait()
        log.seek(0)
        assert end == 0, f"ended with {end} (-9: stopped after {SECONDS} s):\n{log.read()[-10_000:]}"
