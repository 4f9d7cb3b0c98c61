"""Snapshots out of a pool in plain PyTorch: the definition of correct."""

import torch
from torch import Tensor

from ..random.reference import uniform


def draw_snapshots(
    network: Tensor, expert: Tensor | None, weights: Tensor, key: Tensor, ahead: int, first: int, stream: int
) -> Tensor:
    """Write network and expert in place and return the choice; see the public function."""
    networks, states, _ = weights.shape
    # Each number is a tensor [1]: indexing with one without dimensions would wait for the device.
    u = uniform(key, torch.zeros(1, dtype=torch.int64, device=key.device), 3, stream)[0].split(1)
    which = (u[0] * networks).long().clamp(max=networks - 1)
    state = (u[1] * states).long().clamp(max=states - 1)
    reach = (states - 1 - state).clamp(max=ahead)
    later = (state + (u[2] * (reach + 1)).long().minimum(reach)).clamp(min=first)
    network.copy_(weights[which, state][0])
    if expert is not None:
        expert.copy_(weights[which, later][0])
    return torch.cat([which, state, later])
