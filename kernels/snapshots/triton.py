"""Snapshots out of a pool as a Triton kernel: every program draws the same choice and copies its part of the rows."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import launch
from ..random.triton import uniform_value

_WARPS = 4
_BLOCK = 1024


@triton.jit
def _below(u, count):
    """Return floor(count · u) in float32, at most count − 1, for a number in [0, 1)."""
    return tl.minimum((u * tl.cast(count, tl.float32)).to(tl.int64), count - 1)


@triton.jit
def draw_snapshots_kernel(
    network_ptr,
    expert_ptr,
    weights_ptr,
    key_ptr,
    chosen_ptr,
    networks,
    states,
    parameters,
    ahead,
    first,
    stream_id,
    BLOCK: tl.constexpr,
):
    seed = tl.load(key_ptr)
    step = tl.load(key_ptr + 1)
    row = tl.program_id(1)  # 0, as a tensor
    which = _below(uniform_value(seed, step, row, stream_id, row), networks)
    state = _below(uniform_value(seed, step, row, stream_id, row + 1), states)
    reach = tl.minimum(states - 1 - state, ahead)
    later = state + _below(uniform_value(seed, step, row, stream_id, row + 2), reach + 1)
    later = tl.maximum(later, first)

    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = i < parameters
    weights_ptr += which * states * parameters
    values = tl.load(weights_ptr + state * parameters + i, mask=mask)
    tl.store(network_ptr + i, values.to(network_ptr.dtype.element_ty), mask=mask)
    if expert_ptr is not None:
        values = tl.load(weights_ptr + later * parameters + i, mask=mask)
        tl.store(expert_ptr + i, values.to(expert_ptr.dtype.element_ty), mask=mask)
    if tl.program_id(0) == 0:
        tl.store(chosen_ptr, which)
        tl.store(chosen_ptr + 1, state)
        tl.store(chosen_ptr + 2, later)


def draw_snapshots(
    network: Tensor, expert: Tensor | None, weights: Tensor, key: Tensor, ahead: int, first: int, stream: int
) -> Tensor:
    networks, states, parameters = weights.shape
    chosen = launch.empty((3,), torch.int64, key.device)
    launch.start(
        draw_snapshots_kernel,
        (max(1, triton.cdiv(parameters, _BLOCK)), 1),
        network_ptr=network,
        expert_ptr=expert,
        weights_ptr=weights,
        key_ptr=key.contiguous(),
        chosen_ptr=chosen,
        networks=networks,
        states=states,
        parameters=parameters,
        ahead=ahead,
        first=first,
        stream_id=stream,  # Triton's launcher takes `stream` for itself.
        BLOCK=_BLOCK,
        num_warps=_WARPS,
    )
    return chosen
