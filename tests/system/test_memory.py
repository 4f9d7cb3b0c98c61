"""An exhausted memory is one sentence, and never the end of the process."""

import os
import subprocess
import sys

import pytest

from fastdm.errors import FastDMError
from fastdm.system.memory import within_memory

CHILD = """
import resource
import fastdm, numpy as np, torch
data = np.random.default_rng(0).integers(0, 256, (40, 3, 16, 16), dtype=np.uint8), np.arange(40) % 4
dataset = fastdm.open_dataset((*data, *data))
fastdm.condense, fastdm.evaluate
synthetic = fastdm.random_selection(dataset, 1)
floats = np.zeros((600, 3, 64, 64), np.float32), np.arange(600) % 2
calls = [
    lambda: fastdm.condense(dataset, ipc=1, iterations=2, batch_real=4, device="cpu"),
    lambda: fastdm.evaluate(synthetic, dataset, epochs=1, device="cpu"),
    lambda: fastdm.open_dataset(floats),
]
taken = int(open("/proc/self/status").read().split("VmSize:")[1].split()[0]) * 1024
resource.setrlimit(resource.RLIMIT_AS, (taken + MORE, taken + MORE))
print(list(dataset.train.draw(0, 0, 4).shape))
for call in calls:
    try:
        call()
    except fastdm.FastDMError as error:
        print(error)
"""


def test_a_process_without_memory_gets_a_sentence_from_every_call() -> None:
    """64 threads are asked for, of which the memory holds two or three: these draw."""
    pytest.importorskip("fastdm._native")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "FASTDM_THREADS": "64"}
    program = CHILD.replace("MORE", str(20 << 20))
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    drawn, *sentences = result.stdout.splitlines()
    assert drawn == "[4, 4]"
    start = "the memory that this process may use is not enough"
    for sentence, advice in zip(sentences, ("batch_real or ipc", "batch_train", "fastdm pack"), strict=True):
        assert sentence.startswith(start)
        assert advice in sentence


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 3145728 bytes. Error code 12"),
        RuntimeError("CUDA out of memory. Tried to allocate 3.00 MiB."),
        RuntimeError("can't start new thread"),
        OSError(12, "Cannot allocate memory"),
        ImportError("libx.so: failed to map segment from shared object"),
    ],
    ids=lambda error: f"{type(error).__name__} {error}"[:30],
)
def test_every_kind_of_exhaustion_is_known(error: Exception) -> None:
    wanted = r"^the memory .* is not enough( for 3\.0* MiB more)?; take less$"
    with pytest.raises(FastDMError, match=wanted) as caught, within_memory("take less"):
        raise error
    assert caught.value.__cause__ is error


def test_other_errors_pass() -> None:
    for error in (RuntimeError("shapes differ"), KeyError("x"), FastDMError("out of memory")):
        with pytest.raises(type(error)) as caught, within_memory("take less"):
            raise error
        assert caught.value is error
