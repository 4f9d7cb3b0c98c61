"""Where memory does not hold all the threads that were asked for, those that started do the work."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("fastdm._native")

# Python itself does not survive every allocation that fails. So the address space is limited for one call only, the
# first of the core, which starts the threads; what fails is the stack of one of them, which is larger than all that the
# call needs afterwards.
CHILD = """
import resource
import numpy as np
from fastdm import _native as core

offsets, classes = np.arange(0, 401, 100), np.tile(np.arange(4), 4096)
drawn, alone = np.full((2, len(classes), 8), -1)
words = open("/proc/self/status").read().split()
taken = 1024 * int(words[words.index("VmSize:") + 1])
before = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (taken + (20 << 20), before[1]))
core.draw(7, 3, offsets, classes, drawn)
resource.setrlimit(resource.RLIMIT_AS, before)
core.use_threads(1)
core.draw(7, 3, offsets, classes, alone)
print(core.threads(), np.array_equal(drawn, alone))
"""


def test_as_many_threads_as_memory_holds_draw_what_one_would() -> None:
    environment = {**os.environ, "FASTDM_THREADS": "64"}
    result = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    threads, is_same = result.stdout.split()
    assert int(threads) < 64
    assert is_same == "True"
