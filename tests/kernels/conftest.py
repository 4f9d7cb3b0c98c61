"""The tests of the ops run in several lanes, each a call of pytest with another environment (see the Makefile).

- The C++ extension and plain PyTorch on this CPU, with all of its instructions or held down to fewer.
- `TRITON_INTERPRET=1`: the Triton kernels, interpreted. Triton reads the variable when it is imported.
- `FASTDM_TEST_DEVICE=cuda`: the Triton kernels, compiled, on a GPU.

A test that takes `device` must hold for every form of an op and runs in every lane; one that takes `triton_device` runs
in the two lanes of Triton, and one that takes neither in those of the CPU.
"""

import math
import os
from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor

MARGIN = 64  # elements; a multiple of every alignment
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device(os.environ.get("FASTDM_TEST_DEVICE", "cpu"))
IN_TRITON = INTERPRETED or DEVICE.type == "cuda"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    lane = {"device", "triton_device"} if IN_TRITON else {"device"}
    chosen, others = [], []
    for item in items:
        fixtures = {"device", "triton_device"} & set(getattr(item, "fixturenames", ()))
        ours = __package__.replace(".", os.sep) in str(item.path.parent) and not (
            fixtures <= lane and (fixtures or not IN_TRITON)
        )
        (others if ours else chosen).append(item)
    if others:
        config.hook.pytest_deselected(items=others)
        items[:] = chosen


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def device() -> torch.device:
    """The device of the ops' tensors."""
    return DEVICE


@pytest.fixture
def triton_device() -> torch.device:
    """The device of tensors that Triton kernels take."""
    return DEVICE


@pytest.fixture
def interpreted() -> bool:
    """Whether Triton interprets its kernels."""
    return INTERPRETED


@pytest.fixture(autouse=True)
def canaries(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fill every output of a Triton kernel with NaN before it runs, and look for writes past its ends afterwards."""
    if not IN_TRITON:
        yield
        return
    from fastdm.kernels import launch

    buffers = []

    def empty(shape: Sequence[int], dtype: torch.dtype, device: torch.device, channels_last: bool = False) -> Tensor:
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
