"""Whether a first convolution is stored or computed again wherever it is needed: measured where it is used.

The forward pass computes it twice (`triton_conv.py`), and so does the backward pass to the images, where they need a
gradient (`triton_conv_backward.py`).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ..dispatch import first_form

MOST_CHANNELS = 3
"""Input channels of which the 9 · channels numbers round a pixel, and a 1, are no more than 32."""
LEAST_STORED = 1 << 24
"""Elements of the convolution below which storing it takes no longer than a few launches; a quarter with a gradient."""
_ROUNDS = 3
_DELAY = 3_000_000
"""Cycles, about 2 ms, that a GPU waits before a way is timed, so that the launches are there when it begins."""
_measured: dict[tuple[object, ...], bool] = {}


def computes_twice(x: Tensor, weight: Tensor, padding: int, ways: tuple[Callable[[Tensor], Tensor], ...]) -> bool:
    """Whether the second of two ways, which computes the convolution twice, takes less time than the first.

    Both are timed on these tensors at the first call for a device, dtype and shapes, as cuDNN tries its algorithms; it
    is the same permission, `torch.backends.cudnn.benchmark`, since results differ in their last bits. Where x needs a
    gradient it is timed too.

    x: [N, C, H, W]; weight: [K, C, 3, 3], which needs no gradient; ways: functions of x.
    """
    if reason_to_store(x, weight):
        return False
    key = (x.device, x.dtype, x.shape, weight.shape, padding, _needs_gradient(x))
    if key not in _measured:
        if torch.cuda.is_current_stream_capturing():  # nothing can be timed
            return False
        with torch.cuda.device_of(x):
            _measured[key] = _is_second_faster(ways, x)
    return _measured[key]


def reason_to_store(x: Tensor, weight: Tensor) -> str:
    """Return why the convolution is stored in any case, or "" where time decides."""
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack():
        return "the call is recorded, not run"
    if first_form("conv_norm_relu_pool", x.device) != "triton":
        return "there is no kernel for it here"
    if x.shape[1] > MOST_CHANNELS:
        return "a pixel's neighbours are too many to be one operand of a matrix product"
    if x.dtype not in (torch.bfloat16, torch.float16):
        return "cuDNN decides how float32 is multiplied"
    if len(x) * len(weight) * x.shape[2] * x.shape[3] < LEAST_STORED // (4 if _needs_gradient(x) else 1):
        return "it is so small that storing it takes no time"
    if not torch.backends.cudnn.benchmark:
        return "time must not decide"
    return ""


def _needs_gradient(x: Tensor) -> bool:
    return torch.is_grad_enabled() and x.requires_grad


def _is_second_faster(ways: tuple[Callable[[Tensor], Tensor], ...], x: Tensor) -> bool:
    """Time two ways in turn, after a call that compiles them, and compare the shortest times."""
    best = [float("inf")] * len(ways)
    needs_gradient = _needs_gradient(x)
    x = x.detach().requires_grad_(needs_gradient)

    def run(way: Callable[[Tensor], Tensor]) -> None:
        out = way(x)
        if needs_gradient:
            torch.autograd.grad(out, x, out.detach())

    for way in ways:
        run(way)
    for _ in range(_ROUNDS):
        for number, way in enumerate(ways):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda._sleep(_DELAY)
            begin.record()
            run(way)
            end.record()
            end.synchronize()
            best[number] = min(best[number], begin.elapsed_time(end))
    return best[1] < best[0]
