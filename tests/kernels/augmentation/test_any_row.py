"""The augmentation for whatever the table allows."""

import math

import pytest
import torch
from torch import Tensor

from fastdm.kernels import dsa, table
from tests.kernels.augmentation.tables import exact

pytest.importorskip("hypothesis")  # A machine with a GPU may lack it.
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


@st.composite
def rows_and_sizes(draw: st.DrawFn) -> tuple[Tensor, tuple[int, int]]:
    """Any row that the table allows, for a small image of any form."""
    size = (draw(st.integers(2, 12)), draw(st.integers(2, 12)))

    def number(low: float, high: float) -> float:
        return draw(st.floats(low, high, width=32))

    row = table.identity(1)
    row[0, table.BRIGHTNESS : table.CONTRAST + 1] = torch.tensor([number(-1, 1), number(0, 2), number(0, 2)])
    row[0, table.SHIFT_ROWS] = draw(st.integers(-13, 13))
    row[0, table.SHIFT_COLS] = draw(st.integers(-13, 13))
    row[0, table.CUTOUT_TOP] = draw(st.integers(0, size[0] - 1))
    row[0, table.CUTOUT_BOTTOM] = draw(st.integers(-1, size[0] - 1))
    row[0, table.CUTOUT_LEFT] = draw(st.integers(0, size[1] - 1))
    row[0, table.CUTOUT_RIGHT] = draw(st.integers(-1, size[1] - 1))
    row[0, table.FLIP] = draw(st.integers(0, 1))
    row[0, table.SCALE_X], row[0, table.SCALE_Y] = number(0.6875, 4), number(0.6875, 4)
    angle = number(-3.125, 3.125)
    row[0, table.ROTATE_COS], row[0, table.ROTATE_SIN] = math.cos(angle), math.sin(angle)
    return row, size


# A fixed seed, so that a run repeats; every example costs half a second in the interpreter.
@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(rows_and_sizes())
def test_backward_is_the_transposed_forward(device: torch.device, case: tuple[Tensor, tuple[int, int]]) -> None:
    row, (h, w) = case
    generator = torch.Generator().manual_seed(h * 16 + w)
    x, g = torch.randn(2, 1, 3, h, w, generator=generator, dtype=torch.float64).to(device)
    row = row.to(device)
    zero = dsa(torch.zeros_like(x), row)
    leaf = x.clone().requires_grad_()
    out = dsa(leaf, row)
    (transposed,) = torch.autograd.grad(out, leaf, g)
    left, right = ((out - zero).detach() * g).sum(), (x * transposed).sum()
    # Sums of 3hw products of a few units each, in float64.
    assert abs(float(left - right)) <= 1e-13 * 3 * h * w * 16
    assert (out.cpu() - exact(x, row)).abs().max() <= 1e-12
