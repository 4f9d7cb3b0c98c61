"""The augmentation as an affine function of its images: forward mode, second derivatives, `torch.func`, batches."""

import pytest
import torch
from torch import Tensor

from fastdm.kernels import dsa, table
from tests.kernels.augmentation.tables import FAMILIES, draw_table, tolerance

SIZE = (2, 3)


@pytest.fixture
def images(device: torch.device, generator: torch.Generator) -> Tensor:
    return torch.randn(2, 3, *SIZE, generator=generator, dtype=torch.float64).to(device)


@pytest.fixture
def rows(device: torch.device, generator: torch.Generator) -> Tensor:
    return draw_table(2, FAMILIES, SIZE, generator).to(device)


def test_derivatives_of_every_kind_are_those_of_finite_differences(
    images: Tensor, rows: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # Canaries make the results views, which forward mode treats in another way.
    leaf, rows = images[:1].clone().requires_grad_(), rows[:1]  # gradcheck takes hundreds of kernels
    assert torch.autograd.gradcheck(
        lambda x: dsa(x, rows),
        leaf,
        check_forward_ad=True,
        check_batched_grad=True,
        check_batched_forward_grad=True,
        fast_mode=True,
    )
    assert torch.autograd.gradgradcheck(lambda x: dsa(x, rows), leaf, check_fwd_over_rev=True, fast_mode=True)


def test_forward_mode_is_the_difference_of_two_results(
    images: Tensor, rows: Tensor, generator: torch.Generator
) -> None:
    """Exactly, but for rounding: the result is affine, and brightness its only constant."""
    step = torch.randn(images.shape, generator=generator, dtype=torch.float64).to(images.device)
    out, tangent = torch.func.jvp(lambda x: dsa(x, rows), (images,), (step,))
    assert torch.equal(out, dsa(images, rows))
    torch.testing.assert_close(tangent, dsa(images + step, rows) - out, rtol=0, atol=1e-13)
    _, old = torch.autograd.functional.jvp(lambda x: dsa(x, rows), images, step)
    torch.testing.assert_close(old, tangent, rtol=0, atol=1e-13)


def test_forward_mode_in_float32(device: torch.device, generator: torch.Generator) -> None:
    images, step = torch.randn(2, 3, 3, *SIZE, generator=generator)
    rows = draw_table(3, FAMILIES, SIZE, generator)
    _, tangent = torch.func.jvp(lambda x: dsa(x, rows.to(device)), (images.to(device),), (step.to(device),))
    _, exact = torch.func.jvp(lambda x: dsa(x, rows), (images.double(),), (step.double(),))
    assert (tangent.cpu() - exact).abs().max() <= tolerance(FAMILIES, SIZE, float(step.abs().max()))


def test_jacobians_of_both_modes_are_the_same(images: Tensor, rows: Tensor) -> None:
    images, rows = images[:1], rows[:1]
    reverse, forward = (mode(lambda x: dsa(x, rows))(images) for mode in (torch.func.jacrev, torch.func.jacfwd))
    torch.testing.assert_close(reverse, forward, rtol=0, atol=1e-14)


def test_the_gradient_of_a_gradients_norm(images: Tensor, rows: Tensor) -> None:
    """As in gradient matching: for f = ½|Ax + b|² and g = ∇f = Aᵀ(Ax + b), ∇½|g|² = AᵀA g."""
    leaf, rows = images[:1].clone().requires_grad_(), rows[:1]
    (grad,) = torch.autograd.grad(dsa(leaf, rows).square().sum() / 2, leaf, create_graph=True)
    (second,) = torch.autograd.grad(grad.square().sum() / 2, leaf)
    matrix = torch.func.jacrev(lambda x: dsa(x, rows))(leaf.detach()).reshape(leaf.numel(), -1)
    expected = matrix.T @ (matrix @ grad.detach().flatten())
    torch.testing.assert_close(second.flatten(), expected, rtol=0, atol=1e-12 * float(expected.abs().max()))


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("count", [1, 2], ids=["one row", "a row each"])
@pytest.mark.parametrize("in_dims", [(0, None), (None, 0), (1, 1)], ids=str)
def test_vmap_equals_a_loop(
    in_dims: tuple[int | None, int | None],
    count: int,
    grouped: bool,
    device: torch.device,
    generator: torch.Generator,
) -> None:
    batches = torch.randn(3, 2, 3, *SIZE, generator=generator).to(device)
    tables = torch.stack([draw_table(count, FAMILIES, SIZE, generator) for _ in range(3)]).to(device)
    group = torch.tensor([count - 1, 0], device=device) if grouped else None
    arguments = [x[0] if dim is None else x.movedim(0, dim) for x, dim in zip((batches, tables), in_dims, strict=True)]
    found = torch.func.vmap(lambda x, rows: dsa(x, rows, group), in_dims=in_dims)(*arguments)
    looped = [
        dsa(batches[0 if in_dims[0] is None else b], tables[0 if in_dims[1] is None else b], group) for b in range(3)
    ]
    torch.testing.assert_close(found, torch.stack(looped), rtol=0, atol=0)


def test_a_row_that_does_not_exist_stays_an_error_in_a_batch_of_tables() -> None:
    tables = table.identity(2).expand(3, 2, -1)
    with pytest.raises(ValueError, match="group holds -1"):
        torch.func.vmap(lambda rows: dsa(torch.zeros(2, 1, 4, 4), rows, torch.tensor([0, 2])))(tables)


def test_a_gradient_for_each_image(images: Tensor, rows: Tensor) -> None:
    def loss(image: Tensor, row: Tensor) -> Tensor:
        return dsa(image[None], row[None]).square().sum()

    each = torch.func.vmap(torch.func.grad(loss))(images, rows)
    leaf = images.requires_grad_()
    (together,) = torch.autograd.grad(dsa(leaf, rows).square().sum(), leaf)
    torch.testing.assert_close(each, together, rtol=0, atol=1e-13)


def test_a_derivative_with_respect_to_the_table_is_refused(images: Tensor, rows: Tensor) -> None:
    with pytest.raises(NotImplementedError, match="images only"):
        torch.func.jvp(lambda table: dsa(images, table), (rows,), (rows,))
