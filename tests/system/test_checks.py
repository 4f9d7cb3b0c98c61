"""What files from elsewhere are held to."""

import math

import pytest
import torch

from fastdm.system.checks import all_finite


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_all_finite(dtype: torch.dtype) -> None:
    tensor = torch.zeros(4, 5, dtype=dtype, requires_grad=True)
    assert all_finite(tensor)
    assert all_finite(tensor[:0])
    for value in (math.nan, math.inf, -math.inf):
        spoilt = tensor.detach().clone()
        spoilt[2, 3] = value
        assert not all_finite(spoilt)
