"""The objectives by Gram matrices against their plain definitions, pair by pair, in float64."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from fastdm.networks import footprint
from fastdm.objectives import build_objective
from fastdm.objectives.cross_entropy import cross_entropy
from fastdm.objectives.objective import Segments

D = 12


def segments(counts: list[int]) -> Segments:
    offsets = torch.tensor([0, *counts]).cumsum(0)
    group = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    return Segments(slice(0, sum(counts)), offsets, group, tuple(counts), max(counts))


def plain_mmd(s: Tensor, r: Tensor) -> Tensor:
    z = torch.cat([s, r]).detach()
    n = len(z)
    m = sum((z[i] - z[j]).square().sum() for i in range(n) for j in range(n) if i != j) / (n * n - n)
    bandwidths = (0.25, 0.5, 1, 2, 4)

    def k(x: Tensor, y: Tensor) -> Tensor:
        pairs = [torch.exp(-(a - b).square().sum() / (width * m)) for a in x for b in y for width in bandwidths]
        return torch.stack(pairs).sum() / (len(x) * len(y))

    slope = 2 * sum(math.exp(-1 / b) / b for b in bandwidths)
    return (k(s, s) - 2 * k(s, r) + k(r, r)) * m / slope


def plain_cov(s: Tensor, r: Tensor) -> Tensor:
    loss = (s.mean(0) - r.mean(0)).square().sum()
    if len(s) > 1 and len(r) > 1:
        loss = loss + 50 / D * (torch.cov(s.T) - torch.cov(r.T)).square().sum()
    return loss


def plain_mean(s: Tensor, r: Tensor) -> Tensor:
    return (s.mean(0) - r.mean(0)).square().sum()


@pytest.mark.parametrize(("name", "plain"), [("mmd", plain_mmd), ("cov", plain_cov), ("mean", plain_mean)])
@pytest.mark.parametrize("real_counts", [[5, 5, 5], [6, 1, 4]], ids=["even", "ragged"])
@pytest.mark.parametrize("synthetic_count", [1, 4])
def test_value_and_gradient_are_those_of_the_definition(
    name: str, plain: object, real_counts: list[int], synthetic_count: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    real, synthetic = segments(real_counts), segments([synthetic_count] * 3)
    r, s = (torch.randn(len(each.group), D, generator=generator, dtype=torch.float64) + 3 for each in (real, synthetic))
    s.requires_grad_()
    objective = build_objective(name)  # type: ignore[arg-type]
    target = r
    if name == "mean":
        target = torch.stack([r[real.group == c].mean(0) for c in range(3)])
    loss = objective.loss(target, s, real, synthetic)
    expected = sum(plain(s[synthetic.group == c], r[real.group == c]) for c in range(3))  # type: ignore[operator]
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    gradients = [torch.autograd.grad(each, s)[0] for each in (loss, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-12)


def test_near_images_are_pulled_as_far_by_the_kernel_as_by_the_means() -> None:
    """Where all distances are near their mean, the kernel's gradient has the size of the mean's."""
    generator = torch.Generator().manual_seed(1)
    real, synthetic = segments([64]), segments([32])
    r, s = (torch.randn(n, 2048, generator=generator, dtype=torch.float64) for n in (64, 32))
    s = (s + 0.2).requires_grad_()
    mmd = build_objective("mmd").loss(r, s, real, synthetic)
    mean = build_objective("mean").loss(r.mean(0, keepdim=True), s, real, synthetic)
    a, b = (torch.autograd.grad(each, s)[0].mean(0) for each in (mmd, mean))
    assert torch.cosine_similarity(a, b, dim=0) > 0.99
    assert 0.9 < a.norm() / b.norm() < 1.1


@pytest.mark.parametrize("name", ["mmd", "cov"])
def test_equal_features_give_no_loss_and_no_nan(name: str) -> None:
    same = torch.ones(4, D, requires_grad=True)
    objective = build_objective(name)  # type: ignore[arg-type]
    loss = objective.loss(torch.ones(6, D), same, segments([6]), segments([4]))
    (gradient,) = torch.autograd.grad(loss, same)
    assert loss.item() == 0
    assert gradient.abs().max() == 0


@pytest.mark.parametrize("name", ["mmd", "cov"])
@pytest.mark.parametrize("size", [(256, 10, 2048), (2000, 10, 128), (40, 500, 64), (300, 300, 16)])
def test_the_bytes_that_are_planned_for_hold_what_is_counted(name: str, size: tuple[int, int, int]) -> None:
    """At most, and no more than three times: what a smaller class costs, in a chunk of two, is allowed for too."""
    real, synthetic, dimension = size
    objective = build_objective(name)  # type: ignore[arg-type]
    for counts in ([real, real], [real, real - 1]):
        parts = [
            dataclasses.replace(each, offsets=each.offsets.to("meta"), group=each.group.to("meta"))
            for each in (segments(counts), segments([synthetic, synthetic]))
        ]
        target = torch.empty(sum(counts), dimension, device="meta")
        features = torch.empty(2 * synthetic, dimension, device="meta", requires_grad=True)
        with footprint._CountBytes() as counted:
            torch.autograd.grad(objective.loss(target, features, *parts), features)
        held = counted.peak + target.nbytes + features.nbytes
        assert held <= 2 * objective.bytes(real, synthetic, dimension) <= 3 * held


def test_cross_entropy_is_the_mean_of_every_class_summed() -> None:
    logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    per_image = torch.stack([-logits[i].log_softmax(0)[labels[i]] for i in range(6)])
    expected = per_image.view(3, 2).mean(1).sum()
    torch.testing.assert_close(cross_entropy(logits, labels, segments([2, 2, 2])), expected, rtol=1e-14, atol=0)
