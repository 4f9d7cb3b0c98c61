"""The compiled kernels: rounding, graphs, repetition, bad values.

That the ops hold is what tests/kernels shows, in its lane with `FASTDM_TEST_DEVICE=cuda`.
"""

import pytest
import torch
from torch import Tensor

from fastdm.kernels import (
    class_mean_difference,
    draw,
    dsa,
    norm_relu_pool,
    norm_relu_pool_mean,
    table,
    uniform,
    use_backend,
)
from tests.kernels.augmentation.tables import FAMILIES, apart, draw_table

CUDA = torch.device("cuda")


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def cifar_batch(generator: torch.Generator) -> list[Tensor]:
    """A CIFAR-10 step: pool, table, group, offsets, key."""
    pool = torch.randint(0, 256, (5000, 3, 32, 32), generator=generator, dtype=torch.uint8)
    rows = draw_table(10, FAMILIES, (32, 32), generator)
    group = torch.arange(10).repeat_interleave(64)
    offsets = torch.arange(11) * 500
    return [t.to(CUDA) for t in (pool, rows, group, offsets, torch.tensor([7, 0]))]


@pytest.fixture
def batch(generator: torch.Generator) -> list[Tensor]:
    return cifar_batch(generator)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_half_precision_is_the_rounded_float32_result(batch: list[Tensor], dtype: torch.dtype) -> None:
    pool, rows, group, offsets, key = batch
    index = draw(key, offsets, 64).flatten()
    mean = std = torch.full((3,), 0.5, device=CUDA)
    wide, half = (dsa(pool, rows, group, index=index, mean=mean, std=std, dtype=d) for d in (torch.float32, dtype))
    assert torch.equal(wide.to(dtype), half)
    # The sums of the norm run in another order there, so that ties may round otherwise: half a unit and a little.
    expected = norm_relu_pool(half.double())
    half_unit = torch.finfo(dtype).eps / 2
    assert ((norm_relu_pool(half).double() - expected).abs() <= half_unit * expected + 1e-5).all()


def step(
    pool: Tensor, rows: Tensor, group: Tensor, offsets: Tensor, key: Tensor, synthetic: Tensor
) -> tuple[Tensor, ...]:
    """One iteration of distribution matching: the loss and the gradient to the synthetic images."""
    index = draw(key, offsets, 64).flatten()
    mean = std = torch.full((3,), 0.5, device=CUDA)
    real = dsa(pool, rows, group, index=index, mean=mean, std=std, dtype=torch.bfloat16, channels_last=True)
    ours = dsa(synthetic, rows, group[::64])
    sizes = torch.arange(11, device=CUDA)
    weight = 1 + uniform(key, torch.zeros(1, dtype=torch.int64, device=CUDA), 3, 9)[0]
    features = norm_relu_pool_mean(real, sizes * 64, weight)
    loss = class_mean_difference(features, norm_relu_pool(ours, weight).flatten(1), sizes, sizes)
    return loss.detach(), *torch.autograd.grad(loss, synthetic)


def test_a_replayed_graph_draws_afresh(batch: list[Tensor], generator: torch.Generator) -> None:
    synthetic = torch.randn(10, 3, 32, 32, generator=generator).to(CUDA).requires_grad_()
    *_, key = batch
    rows = batch[1]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # Compiles the kernels, which a capture could not.
        step(*batch, synthetic)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(*batch, synthetic)
    losses = set()
    for _ in range(3):
        key[1] += 1
        rows.copy_(draw_table(10, FAMILIES, (32, 32), generator))
        graph.replay()
        for replayed, eager in zip(captured, step(*batch, synthetic), strict=True):
            assert torch.equal(replayed, eager)
        losses.add(float(captured[0]))
    assert len(losses) == 3


def test_repeated_steps_are_equal_bit_for_bit(batch: list[Tensor], generator: torch.Generator) -> None:
    synthetic = torch.randn(10, 3, 32, 32, generator=generator).to(CUDA).requires_grad_()
    first = step(*batch, synthetic)
    for _ in range(20):
        for one, other in zip(first, step(*batch, synthetic), strict=True):
            assert torch.equal(one, other)


def test_draws_are_those_of_the_cpu(batch: list[Tensor]) -> None:
    *_, offsets, key = batch
    whole = offsets[[0, -1]]  # 5,000 images in one class
    for n, classes in ((1, offsets), (50, offsets), (256, offsets), (500, offsets), (1500, whole), (4999, whole)):
        for replace in (False, True):
            expected = draw(key.cpu(), classes.cpu(), n, replace=replace)
            assert torch.equal(draw(key, classes, n, replace=replace).cpu(), expected)
    rows = torch.tensor([0, 5, 2**32 - 1], device=CUDA)
    assert torch.equal(uniform(key, rows, 1001, 2).cpu(), uniform(key.cpu(), rows.cpu(), 1001, 2))


def test_values_that_cannot_be_computed_become_nan(batch: list[Tensor]) -> None:
    pool, rows, *_, key = batch
    images = pool[:4] / 255
    out = dsa(images, rows, torch.tensor([0, 10, -1, 1], device=CUDA))
    assert out.isnan().flatten(1).all(1).tolist() == [False, True, True, False]
    out = dsa(images, rows[:1], index=torch.tensor([4, 0, -1], device=CUDA))
    assert out.isnan().flatten(1).all(1).tolist() == [True, False, True]
    for column, value in ((table.SCALE_X, 1 / 1.6), (table.ROTATE_SIN, 1.0), (table.ROTATE_COS, 0.0)):
        impossible = table.identity(1).to(CUDA)
        impossible[0, column] = value
        leaf = images.clone().requires_grad_()
        dsa(leaf, impossible).sum().backward()
        assert leaf.grad.isnan().all()
    assert draw(key, torch.tensor([0, 3, 10], device=CUDA), 5)[0].eq(-1).all()
    assert draw(key, torch.tensor([0, 0, 10], device=CUDA), 5, replace=True)[0].eq(-1).all()


def test_the_reference_runs_on_request_and_agrees(batch: list[Tensor]) -> None:
    pool, rows, *_ = batch
    images = pool[:10] / 255
    with use_backend("reference"):
        expected = dsa(images, rows)
    assert (dsa(images, rows) - expected).abs().max() <= apart(FAMILIES, (32, 32), 1)
