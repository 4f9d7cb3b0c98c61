"""Snapshots out of a pool against the formula of the choice, number by number."""

import pytest
import torch
from torch import Tensor

from fastdm.kernels import draw_snapshots, uniform

STREAM = 6


def expected(key: Tensor, networks: int, states: int, ahead: int, first: int) -> list[int]:
    """Number of the network, its state and the expert's, by float32 products, truncation and tables of states."""
    u = uniform(key.cpu(), torch.zeros(1, dtype=torch.int64), 3, STREAM)[0]
    counts, last = torch.tensor([networks, states], dtype=torch.float32), torch.tensor([networks - 1, states - 1])
    which, state = (u[:2] * counts).long().minimum(last).tolist()
    reach = min(ahead, states - 1 - state)
    later = [max(state + min(more, reach), first) for more in range(ahead + 2)]
    return [which, state, later[int(u[2] * torch.tensor(reach + 1.0))]]


def pool(networks: int, states: int, parameters: int, device: torch.device) -> Tensor:
    """Whole numbers that float32 holds, all of them different."""
    return torch.arange(float(networks * states * parameters), device=device).view(networks, states, parameters)


# The smallest pool; a network's only state; the expert at hand, and further than the last state.
@pytest.mark.parametrize(
    ("networks", "states", "ahead", "first"), [(1, 1, 0, 0), (5, 1, 2, 0), (3, 6, 2, 2), (7, 4, 9, 2), (1, 9, 0, 1)]
)
def test_the_choice_is_that_of_the_formula(
    networks: int, states: int, ahead: int, first: int, device: torch.device
) -> None:
    weights = pool(networks, states, 3, device)
    network, expert = torch.zeros(2, 3, device=device)
    found = set()
    for step in range(60):
        key = torch.tensor([2**40 + 7, step], device=device)
        chosen = draw_snapshots(network, expert, weights, key, ahead=ahead, first=first, stream=STREAM).tolist()
        assert chosen == expected(key, networks, states, ahead, first)
        which, state, later = chosen
        assert torch.equal(network, weights[which, state])
        assert torch.equal(expert, weights[which, later])
        found.add((which, state))
    assert len(found) >= networks * states / 2


@pytest.mark.parametrize("parameters", [1, 1024, 2053])  # within a block, one, and more than two
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("alone", [True, False], ids=["network", "network and expert"])
def test_the_rows_are_written_and_nothing_else(
    parameters: int, dtype: torch.dtype, alone: bool, device: torch.device, generator: torch.Generator
) -> None:
    weights = torch.randn(3, 4, parameters, generator=generator).to(dtype).float().to(device)
    around = torch.full((2, parameters + 128), torch.nan, dtype=dtype, device=device)
    network, expert = around[:, 64:-64]
    key = torch.tensor([1, 5], device=device)
    options = {"ahead": 3, "first": 2, "stream": STREAM}
    which, state, later = draw_snapshots(network, None if alone else expert, weights, key, **options).tolist()
    assert torch.equal(network, weights[which, state].to(dtype))
    assert expert.isnan().all() if alone else torch.equal(expert, weights[which, later].to(dtype))
    assert around[:, :64].isnan().all()
    assert around[:, -64:].isnan().all()


def test_a_pool_may_have_more_than_two_to_the_31_elements(device: torch.device) -> None:
    """Of which only the chosen rows are ever written."""
    networks, states, parameters = 3, 2**17, 2**13
    weights = torch.empty(networks, states, parameters, dtype=torch.float16, device=device)
    for step in range(99):
        key = torch.tensor([3, step], device=device)
        which, state, later = expected(key, networks, states, 5, 2)
        if which == networks - 1 and later != state:
            break
    weights[which, state] = 1
    weights[which, later] = 2
    network, expert = torch.zeros(2, parameters, device=device)
    draw_snapshots(network, expert, weights, key, ahead=5, first=2, stream=STREAM)
    assert (which * states + state) * parameters >= 2**31
    assert later != state
    assert (network == 1).all()
    assert (expert == 2).all()


def test_opcheck(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # It compares storage offsets, which canaries shift.
    weights, key = pool(2, 3, 4, device), torch.tensor([1, 2], device=device)
    network, expert = (torch.zeros(4, device=device) for _ in range(2))
    for other in (None, expert):
        torch.library.opcheck(torch.ops.fastdm.draw_snapshots.default, (network, other, weights, key, 2, 2, STREAM))


def test_bad_arguments_are_refused() -> None:
    weights, key, row = torch.zeros(2, 3, 4), torch.tensor([1, 2]), torch.zeros(4)
    options = {"ahead": 2, "first": 2, "stream": STREAM}
    with pytest.raises(ValueError, match="expert has 3 parameters; it must have 4"):
        draw_snapshots(row, row[:3], weights, key, **options)
    with pytest.raises(ValueError, match="network must be contiguous"):
        draw_snapshots(torch.zeros(8)[::2], None, weights, key, **options)
    with pytest.raises(ValueError, match="weights must be contiguous"):
        draw_snapshots(row, None, torch.zeros(4, 3, 2).permute(2, 1, 0), key, **options)
    with pytest.raises(TypeError, match=r"network is torch\.int64"):
        draw_snapshots(row.long(), None, weights, key, **options)
    with pytest.raises(ValueError, match="0 networks in 3 states"):
        draw_snapshots(row, None, weights[:0], key, **options)
    for wrong in ({"ahead": -1}, {"first": 3}, {"first": -1}):
        with pytest.raises(ValueError, match="they must be ≥ 0"):
            draw_snapshots(row, None, weights, key, **(options | wrong))
    with pytest.raises(ValueError, match="key has 3 entries"):
        draw_snapshots(row, None, weights, torch.tensor([1, 2, 3]), **options)
