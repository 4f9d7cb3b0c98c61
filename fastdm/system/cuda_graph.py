"""CUDA graphs: an iteration recorded once and replayed without the host."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

WARM_UP = 3
"""Runs before the recording: they compile the kernels and let cuDNN choose its algorithms."""


@contextmanager
def unchanged(state: Sequence[Tensor]) -> Iterator[None]:
    """Give the tensors back, in place, the values that they have before the block."""
    before = [tensor.clone() for tensor in state]
    try:
        yield
    finally:
        for tensor, value in zip(state, before, strict=True):
            tensor.copy_(value)


def captured(function: Callable[[], Tensor], state: Sequence[Tensor]) -> Callable[[], Tensor]:
    """`function` as a CUDA graph: the returned call replays it on the same tensors and gives a copy of its result.

    state: the tensors that `function` changes in place, on the device of the graph; the warm-up leaves them as they
    were. Raises RuntimeError where something in the function cannot be recorded.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(state[0].device), unchanged(state):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                function()
        torch.cuda.current_stream().wait_stream(stream)
        with torch.cuda.graph(graph):
            result = function()

    def replay() -> Tensor:
        graph.replay()
        return result.clone()

    return replay
