"""The ops under `torch.func`, in forward mode and twice: what they have no rule for is refused, never taken for 0."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from fastdm.kernels import (
    class_mean_difference,
    conv_norm_relu_pool,
    cross_entropy,
    draw,
    dsa,
    norm_relu_pool,
    table,
    uniform,
)


def _loss(synthetic: Tensor) -> Tensor:
    return class_mean_difference(torch.zeros_like(synthetic), synthetic, None, torch.arange(len(synthetic) + 1))


OPS = {
    "norm_relu_pool": (norm_relu_pool, (2, 3, 4, 4)),
    "norm_relu_pool, a weight": (lambda weight: norm_relu_pool(torch.ones(2, 3, 4, 4), weight), (3,)),
    "conv_norm_relu_pool": (lambda x: conv_norm_relu_pool(x, torch.ones(32, 3, 3, 3)), (2, 3, 4, 4)),
    "class_mean_difference": (_loss, (2, 5)),
    "cross_entropy": (lambda logits: cross_entropy(logits, torch.tensor([0, 4])), (2, 5)),
    "dsa with an index": (lambda x: dsa(x, table.identity(1), index=torch.tensor([0])), (2, 3, 4, 4)),
}


@pytest.mark.parametrize("name", OPS)
def test_a_forward_mode_derivative_is_refused(name: str) -> None:
    function, shape = OPS[name]
    x = torch.ones(shape)
    op = name.partition(",")[0]
    with forward_ad.dual_level():
        function(x)  # has no tangent
        with pytest.raises(NotImplementedError, match=f"{op} has no forward-mode derivative"):
            function(forward_ad.make_dual(x, x))
    with pytest.raises(NotImplementedError, match=f"{op} has no forward-mode derivative"):
        torch.func.jvp(function, (x,), (x,))


@pytest.mark.parametrize("name", [name for name in OPS if name != "dsa with an index"])  # which takes no gradient
def test_a_second_derivative_is_refused(name: str) -> None:
    """When the gradient is taken: where that of the result is a constant, nothing leads back to the op afterwards."""
    function, shape = OPS[name]
    op = name.partition(",")[0]
    x = torch.ones(shape, requires_grad=True)
    loss = function(x).sum() + x.square().sum()
    with pytest.raises(NotImplementedError, match=f"{op} has no second derivative; take its gradient without"):
        torch.autograd.grad(loss, x, create_graph=True)


KEY, OFFSETS = torch.tensor([7, 3]), torch.tensor([0, 20, 50])


@pytest.mark.parametrize(
    "function",
    [
        pytest.param(lambda rows: uniform(KEY, rows, 5, 9), id="uniform"),
        pytest.param(lambda classes: draw(KEY, OFFSETS, 5, classes % 2), id="draw"),
    ],
)
def test_a_batch_of_draws_is_one_after_the_other(function: Callable[[Tensor], Tensor]) -> None:
    rows = torch.arange(6).view(2, 3)
    assert torch.equal(torch.vmap(function)(rows), torch.stack([function(each) for each in rows]))
