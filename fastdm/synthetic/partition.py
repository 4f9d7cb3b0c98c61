"""Partition: an image that holds several training images (Kim et al., ICML 2022, "multi-formation").

A canvas is cut into f × f parts, and every part is enlarged to the size of the canvas. The budget counts canvases;
a network trains on f² times as many images.
"""

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

from fastdm.errors import FastDMError


def expand(canvases: Tensor, partition: int) -> Tensor:
    """Decode canvases: cut each into `partition`² parts and enlarge every part to the whole size, bilinearly.

    Y = U X Vᵀ for a part X, where row i of U takes the pixel centre (i + ½) / f − ½, kept within the part, between its
    two neighbours (`align_corners=False`): no part bleeds into another. Two matrix products, so that the gradient is
    two more, in a fixed order on every device.

    canvases: floating point [N, C, H, W], H and W divisible by `partition`. Returns [N · partition², C, H, W]: the
    parts of a canvas follow each other, row by row, so that class-sorted canvases give class-sorted images. Raises
    FastDMError for a size that cannot be divided.
    """
    if partition == 1:
        return canvases
    n, channels, height, width = canvases.shape
    check_partition(partition, (height, width))
    parts = canvases.view(n, channels, partition, height // partition, partition, width // partition)
    parts = parts.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)
    rows, columns = (_taps(size // partition, partition, canvases.dtype, canvases.device) for size in (height, width))
    return rows @ parts @ columns.T


def shrink(images: Tensor, partition: int) -> Tensor:
    """Canvases [N / partition², C, H, W] whose parts are the images, each shrunk by the mean of partition² pixels."""
    if partition == 1:
        return images
    n, channels, height, width = images.shape
    check_partition(partition, (height, width))
    small = functional.avg_pool2d(images, partition)
    grid = small.view(n // partition**2, partition, partition, channels, height // partition, width // partition)
    return grid.permute(0, 3, 1, 4, 2, 5).reshape(n // partition**2, channels, height, width)


def check_partition(partition: int, size: tuple[int, int]) -> None:
    """Raise FastDMError for images of `size` (height, width) that cannot be cut into `partition` × `partition`."""
    height, width = size
    if partition < 1 or height % partition or width % partition:
        raise FastDMError(
            f"partition is {partition}, but images of {height}x{width} pixels cannot be cut into that many equal parts "
            "along each side; use a divisor of both"
        )


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # a matrix that is kept must serve every mode
def _taps(small: int, factor: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The matrix [small · factor, small] of a bilinear enlargement along one axis.

    Kept, and made of operations on the device: constants from the host could not be recorded in a graph.
    """
    position = torch.arange(small * factor, dtype=dtype, device=device)
    source = ((position + 0.5) / factor - 0.5).clamp_(0, small - 1)
    return (1 - (source[:, None] - torch.arange(small, dtype=dtype, device=device)).abs()).clamp_(min=0)
