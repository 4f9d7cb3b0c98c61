"""`draw_snapshots`: checks, schema."""

from torch import Tensor

from ..checks import check_floating_point, check_tensor
from ..dispatch import define, run
from ..random.op import check_key, check_stream


def draw_snapshots(
    network: Tensor, expert: Tensor | None, weights: Tensor, key: Tensor, *, ahead: int, first: int, stream: int
) -> Tensor:
    """Draw a snapshot of a pool uniformly, and of the same network a later one: their weights, in one launch.

    With u = `uniform(key, [0], 3, stream)[0]` and reach = min(ahead, states − 1 − state):

    which = floor(networks · u₀), state = floor(states · u₁), later = max(state + floor((reach + 1) · u₂), first),

    with products in float32, each of them less by 1 where it is rounded up to its factor. Then
    network ← weights[which, state] and expert ← weights[which, later].

    network, expert: floating point [parameters], contiguous; they are written in place, in their own dtypes.
    weights: floating point [networks, states, parameters], contiguous.
    key: int64 [2], (seed, step), as for `uniform`.
    ahead: how many states later the expert's may be; first: that of the expert is at least this one.

    Returns int64 [3]: (which, state, later). Raises TypeError for a wrong dtype, ValueError for wrong shapes, devices
    and numbers.

    >>> import torch
    >>> from fastdm.kernels import draw_snapshots
    >>> network, weights = torch.zeros(2), torch.arange(12.0).view(2, 3, 2)
    >>> which, state, _ = draw_snapshots(network, None, weights, torch.tensor([7, 0]), ahead=0, first=0, stream=6)
    >>> torch.equal(network, weights[which, state])
    True
    """
    check_key(key)
    check_stream(stream)
    check_tensor("weights", weights, 3, None, key.device)
    networks, states, parameters = weights.shape
    if networks == 0 or states == 0:
        raise ValueError(f"weights are of {networks} networks in {states} states; there must be one to draw")
    rows = {"network": network} if expert is None else {"network": network, "expert": expert}
    for name, row in rows.items():
        check_tensor(name, row, 1, None, key.device)
        if row.shape[0] != parameters:
            raise ValueError(f"{name} has {row.shape[0]} parameters; it must have {parameters}, as weights have")
    for name, tensor in (*rows.items(), ("weights", weights)):
        check_floating_point(name, tensor)
        if not tensor.is_contiguous():
            raise ValueError(f"{name} must be contiguous")
    if ahead < 0 or not 0 <= first < states:
        raise ValueError(f"ahead is {ahead} and first {first}; they must be ≥ 0, and first below {states}, the states")
    chosen: Tensor = run("draw_snapshots", network, expert, weights, key, ahead, first, stream)
    return chosen


@define(
    "draw_snapshots",
    "(Tensor(a!) network, Tensor(b!)? expert, Tensor weights, Tensor key, int ahead, int first, int stream) -> Tensor",
)
def _(
    network: Tensor, expert: Tensor | None, weights: Tensor, key: Tensor, ahead: int, first: int, stream: int
) -> Tensor:
    return key.new_empty(3)
