import math
import os

import pytest
import torch

MARGIN = 64  # elements; a multiple of every alignment
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@pytest.fixture
def device():
    return torch.device(os.environ.get("FASTDM_TEST_DEVICE", "cpu"))


@pytest.fixture(autouse=True)
def canaries(monkeypatch):
    """Fill every output of a Triton kernel with NaN before it runs, and look for writes past its ends afterwards."""
    if not (INTERPRETED or torch.cuda.is_available()):
        yield
        return
    from fastdm.kernels import launch

    buffers = []

    def empty(shape, dtype, device, channels_last=False):
        n, fill = math.prod(shape), math.nan if dtype.is_floating_point else -(2**62)
        buffer = torch.full((n + 2 * MARGIN,), fill, dtype=dtype, device=device)
        buffers.append((buffer, n))
        inner = buffer[MARGIN : MARGIN + n]
        if channels_last:
            batch, channels, height, width = shape
            return inner.view(batch, height, width, channels).permute(0, 3, 1, 2)
        return inner.view(shape)

    monkeypatch.setattr(launch, "empty", empty)
    yield
    for buffer, n in buffers:
        for margin in (buffer[:MARGIN], buffer[MARGIN + n :]):
            untouched = margin.isnan() if buffer.is_floating_point() else margin == -(2**62)
            assert untouched.all(), "a kernel wrote past the ends of its output"
