"""The reference and the C++ form against the public code's literal transformations, for equal draws."""

import pytest
import torch

from bench.baselines.public_step import apply_row
from fastdm.kernels import dsa, use_backend
from tests.kernels.ops.test_dsa import FAMILIES, draw_table

# In float32, for normalised pixels: where both sides round, as much as the public code itself is off float64.
BOUNDS = {"color": 1e-6, "crop": 0.0, "cutout": 0.0, "flip": 0.0, "scale": 1e-5, "rotate": 1e-5}


@pytest.mark.parametrize("backend", ["reference", "auto"])
@pytest.mark.parametrize("families", [*((f,) for f in FAMILIES), FAMILIES], ids="-".join)
def test_equal_draws_give_equal_images_and_gradients(families, backend, generator):
    images = torch.rand(12, 3, 32, 32, generator=generator) * 4 - 2
    rows = draw_table(12, families, (32, 32), generator)
    grad = torch.randn(images.shape, generator=generator)

    def ours(x):
        with use_backend(backend):
            return dsa(x, rows)

    def theirs(x):
        return torch.cat([apply_row(x[i : i + 1], row) for i, row in enumerate(rows)])

    bound = BOUNDS[families[0]] if len(families) == 1 else 2.5e-5
    leaves = [images.clone().requires_grad_() for _ in range(2)]
    outs = [augment(leaf) for augment, leaf in zip((ours, theirs), leaves, strict=True)]
    assert (outs[0] - outs[1]).detach().abs().max() <= bound
    for out in outs:
        out.backward(grad)
    assert (leaves[0].grad - leaves[1].grad).abs().max() <= bound
