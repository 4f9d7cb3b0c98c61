"""The reference and the C++ form against the public code's literal transformations, for equal draws."""

import pytest
import torch
from torch import Tensor

from fastdm.kernels import dsa, use_backend
from fastdm.kernels.dispatch import Backend
from tests.kernels.augmentation.tables import FAMILIES, apart, draw_table
from tests.oracles import apply_row


@pytest.mark.parametrize("backend", ["reference", "auto"])
@pytest.mark.parametrize("families", [*((f,) for f in FAMILIES), FAMILIES], ids="-".join)
def test_equal_draws_give_equal_images_and_gradients(
    families: tuple[str, ...], backend: Backend, generator: torch.Generator
) -> None:
    images = torch.rand(12, 3, 32, 32, generator=generator) * 4 - 2
    rows = draw_table(12, families, (32, 32), generator)
    grad = torch.randn(images.shape, generator=generator)

    def ours(x: Tensor) -> Tensor:
        with use_backend(backend):
            return dsa(x, rows)

    def theirs(x: Tensor) -> Tensor:
        return torch.cat([apply_row(x[i : i + 1], row) for i, row in enumerate(rows)])

    leaves = [images.clone().requires_grad_() for _ in range(2)]
    outs = [augment(leaf) for augment, leaf in zip((ours, theirs), leaves, strict=True)]
    assert (outs[0] - outs[1]).detach().abs().max() <= apart(families, (32, 32), 2)
    gradients = [torch.autograd.grad(out, leaf, grad)[0] for out, leaf in zip(outs, leaves, strict=True)]
    # A pixel collects weights that add up to at most 1.5² (enlargement on both axes).
    assert (gradients[0] - gradients[1]).abs().max() <= 2.25 * apart(families, (32, 32), float(grad.abs().max()))
