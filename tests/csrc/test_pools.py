"""The core computes on the threads that PyTorch's operations leave spinning, not beside them."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("fastdm._native")

CHILD = """
import os
import torch
from fastdm.kernels import draw, norm_relu_pool

def threads():
    return len(os.listdir("/proc/self/task"))

def compute():
    return norm_relu_pool(images), draw(torch.tensor([0, 1]), torch.arange(1001) * 300, 256, torch.arange(1000))

torch.set_num_threads(3)
images = torch.rand(64, 8, 32, 32)
images.add(1)  # shared among threads, which are there from now on
before = threads()
shared = compute()
print(threads() - before)
torch.set_num_threads(1)
print(all(torch.equal(one, other) for one, other in zip(shared, compute())))
"""


def test_no_threads_beside_those_of_pytorch() -> None:
    environment = {**os.environ, "FASTDM_THREADS": "3", "OMP_NUM_THREADS": "3"}
    result = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["0", "True"]
