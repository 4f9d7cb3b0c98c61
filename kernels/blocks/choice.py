"""Whether a first convolution is stored or computed twice (`triton_conv.py`): measured where it is used."""

from collections.abc import Callable

import torch
from torch import Tensor

from ..dispatch import first_form

MOST_CHANNELS = 3
"""Input channels of which the 9 · channels numbers round a pixel, and a 1, are no more than 32."""
LEAST_STORED = 1 << 24
"""Elements of the convolution below which storing it takes no longer than a few launches."""
_ROUNDS = 3
_measured: dict[tuple[object, ...], bool] = {}


def computes_twice(x: Tensor, weight: Tensor, padding: int, ways: tuple[Callable[[], Tensor], ...]) -> bool:
    """Whether the second of two ways, which computes the convolution twice, takes less time than the first.

    Both are timed on these tensors at the first call for a device, dtype and shapes, as cuDNN tries its algorithms; it
    is the same permission, `torch.backends.cudnn.benchmark`, since results differ in their last bits.

    x: [N, C, H, W]; weight: [K, C, 3, 3].
    """
    if reason_to_store(x, weight):
        return False
    key = (x.device, x.dtype, x.shape, weight.shape, padding)
    if key not in _measured:
        if torch.cuda.is_current_stream_capturing():  # nothing can be timed
            return False
        with torch.cuda.device_of(x):
            _measured[key] = _is_second_faster(ways)
    return _measured[key]


def reason_to_store(x: Tensor, weight: Tensor) -> str:
    """Return why the convolution is stored in any case, or "" where time decides."""
    if torch.compiler.is_compiling() or first_form("conv_norm_relu_pool", x.device) != "triton":
        return "there is no kernel for it here"
    if x.shape[1] > MOST_CHANNELS:
        return "a pixel's neighbours are too many to be one operand of a matrix product"
    if x.dtype not in (torch.bfloat16, torch.float16):
        return "cuDNN decides how float32 is multiplied"
    if len(x) * len(weight) * x.shape[2] * x.shape[3] < LEAST_STORED:
        return "it is so small that storing it takes no time"
    if not torch.backends.cudnn.benchmark:
        return "time must not decide"
    return ""


def _is_second_faster(ways: tuple[Callable[[], Tensor], ...]) -> bool:
    """Time two ways in turn, after a call that compiles them, and compare the shortest times."""
    best = [float("inf")] * len(ways)
    for way in ways:
        way()
    for _ in range(_ROUNDS):
        for number, way in enumerate(ways):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            way()
            end.record()
            end.synchronize()
            best[number] = min(best[number], begin.elapsed_time(end))
    return best[1] < best[0]
