"""CUDA graphs: an iteration recorded once and replayed without the host."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

WARM_UP = 3
"""Runs before the recording: they compile the kernels and let cuDNN choose its algorithms."""


def captured(function: Callable[[], Tensor], state: Sequence[Tensor]) -> Callable[[], Tensor]:
    """`function` as a CUDA graph: the returned call replays it on the same tensors and gives a copy of its result.

    state: the tensors that `function` changes in place; the warm-up leaves them as they were.
    Raises RuntimeError where something in the function cannot be recorded.
    """
    before = [tensor.clone() for tensor in state]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            result = function()
    finally:
        for tensor, value in zip(state, before, strict=True):
            tensor.copy_(value)

    def replay() -> Tensor:
        graph.replay()
        return result.clone()

    return replay
