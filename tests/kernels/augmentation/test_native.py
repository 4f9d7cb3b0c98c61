"""The augmentation in C++: its schema, and pixels that are not numbers."""

import pytest
import torch

from fastdm.kernels import dsa, extension, table

pytestmark = pytest.mark.skipif(extension.load() is None, reason="fastdm was installed without extension")

DTYPES = [pytest.param(torch.float32, id="float32"), pytest.param(torch.bfloat16, id="bfloat16")]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [1, 3])
def test_the_augmentation_as_an_op(channels: int, dtype: torch.dtype) -> None:
    images = torch.randn(3, channels, 6, 5)
    rows, group = table.identity(2), torch.tensor([1, 0, 1])
    rows[1, table.SCALE_X] = 1.1
    for last in (False, True):
        torch.library.opcheck(torch.ops.fastdm.dsa, (images, rows, group, None, None, None, dtype, last))
        grad = images.to(dtype, memory_format=torch.channels_last if last else torch.contiguous_format)
        torch.library.opcheck(torch.ops.fastdm.dsa_backward, (grad, rows, group, torch.float32))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_pixel_of_no_number_stays_none_and_alone(dtype: torch.dtype) -> None:
    images = torch.randn(2, 3, 6, 5)
    images[1, 0, 2, 2] = torch.nan
    assert dsa(images, table.identity(1), dtype=dtype).isnan().nonzero().tolist() == [[1, 0, 2, 2]]
