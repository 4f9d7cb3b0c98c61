"""The cross-entropy against its formula in float64."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from fastdm.kernels import cross_entropy

FLOAT32_EPS = 2.0**-23
SCALE = 1 / 3


def drawn(shape: tuple[int, int], dtype: torch.dtype, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    logits = 3 * torch.randn(shape, generator=generator, dtype=torch.float64)
    return logits.to(dtype), torch.randint(shape[1], shape[:1], generator=generator)


def exact(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Loss of every row, and the gradient of their sum, unscaled."""
    wide = logits.double().requires_grad_()
    rows = wide.logsumexp(1) - wide[torch.arange(len(wide)), labels]
    return rows.detach(), torch.autograd.grad(rows.sum(), wide)[0]


# One row and class; the recipe's; more rows than a program has, not divisible; fewer classes than a block, and several
# blocks of them.
@pytest.mark.parametrize("shape", [(1, 1), (40, 10), (1100, 10), (9, 1000), (11, 2100)], ids=lambda s: f"{s[0]}x{s[1]}")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"])
def test_loss_and_gradient_are_those_of_float64(
    shape: tuple[int, int], dtype: torch.dtype, device: torch.device, generator: torch.Generator
) -> None:
    logits, labels = drawn(shape, dtype, generator)
    rows, gradient = exact(logits, labels)
    leaf = logits.to(device, copy=True).requires_grad_()
    loss = cross_entropy(leaf, labels.to(device), SCALE)
    (3 * loss).backward()
    assert loss.dtype == torch.float32
    assert leaf.grad is not None
    assert leaf.grad.dtype == dtype
    # exp(x − m) is off by |x − m| ε for its argument and 4 ε of its own, a sum of them by ε for each; the logarithm and
    # what is added to it by some 8 ε of values around 1. Rows are then added: all are positive.
    spread = float((logits.double().amax(1) - logits.double().amin(1)).max())
    relative = (shape[1] + spread + 12) * FLOAT32_EPS
    assert abs(loss.item() - SCALE * float(rows.sum())) <= SCALE * (
        shape[0] * relative + (shape[0] + 4) * FLOAT32_EPS * float(rows.sum())
    )
    # p has the relative error of two such exponentials; it is subtracted from 1, scaled, and rounded once, by up to a
    # whole unit where Triton is interpreted.
    gradient = 3 * SCALE * gradient
    ulp, tiny = {torch.float32: (0.0, 0.0), torch.float16: (2.0**-10, 2.0**-24), torch.bfloat16: (2.0**-7, 0.0)}[dtype]
    error = (leaf.grad.cpu().double() - gradient).abs()
    assert (error <= 3 * SCALE * 2 * relative + ulp * gradient.abs() + tiny).all()


def test_the_reference_has_the_bits_of_pytorch(generator: torch.Generator) -> None:
    """Losses and images of a CPU are those of the public formula."""
    for dtype in (torch.float32, torch.bfloat16):
        logits, labels = drawn((40, 10), dtype, generator)
        leaves = [logits.clone().requires_grad_() for _ in range(2)]
        theirs = functional.cross_entropy(leaves[0].float(), labels, reduction="sum") * SCALE
        ours = cross_entropy(leaves[1], labels, SCALE)
        assert torch.equal(ours, theirs)
        gradients = [
            torch.autograd.grad(2.7 * loss, leaf)[0] for loss, leaf in ((theirs, leaves[0]), (ours, leaves[1]))
        ]
        assert torch.equal(*gradients)


def test_logits_may_be_a_view_and_anything_that_pytorch_takes(device: torch.device) -> None:
    inf = math.inf
    logits = torch.tensor(
        [
            [-inf, 0, 1],
            [1e4, -1e4, 0],
            [-inf, -inf, -inf],
            [inf, 0, 0],
            [math.nan, 0, 0],
            [0, -inf, 0],  # the label has no chance
            [3e38, -3e38, 3e38],
        ],
        dtype=torch.float64,
    )
    labels = torch.tensor([1, 0, 0, 0, 1, 1, 2])
    for row in range(len(logits)):
        wide = logits[row : row + 1].clone().requires_grad_()
        expected = functional.cross_entropy(wide, labels[row : row + 1], reduction="sum")
        leaf = logits[row : row + 1].float().T.contiguous().to(device).requires_grad_()
        loss = cross_entropy(leaf.T, labels[row : row + 1].to(device))
        torch.testing.assert_close(loss.cpu().double(), expected.detach(), rtol=1e-6, atol=0, equal_nan=True)
        gradients = [torch.autograd.grad(*pair)[0] for pair in ((loss, leaf), (expected, wide))]
        torch.testing.assert_close(gradients[0].T.cpu().double(), gradients[1], rtol=0, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("classes", [3, 1500])  # in one block, in two
def test_a_chance_of_zero_in_a_whole_block_of_classes(classes: int, device: torch.device) -> None:
    logits = torch.full((2, classes), -math.inf)
    logits[:, -2:] = 0
    leaf = logits.to(device).requires_grad_()
    loss = cross_entropy(leaf, torch.tensor([classes - 1, classes - 2], device=device))
    (gradient,) = torch.autograd.grad(loss, leaf)
    assert loss.item() == pytest.approx(2 * math.log(2), rel=1e-6)
    expected = torch.tensor([[0.5, -0.5], [-0.5, 0.5]])
    torch.testing.assert_close(gradient[:, -2:].cpu(), expected, rtol=1e-6, atol=0)
    assert (gradient[:, :-2] == 0).all()


def test_no_rows_have_no_loss(device: torch.device) -> None:
    leaf = torch.zeros(0, 10, device=device, requires_grad=True)
    loss = cross_entropy(leaf, torch.zeros(0, dtype=torch.int64, device=device))
    assert loss.item() == 0
    assert torch.autograd.grad(loss, leaf)[0].shape == (0, 10)


def test_the_loss_repeats_bit_for_bit(device: torch.device, generator: torch.Generator) -> None:
    logits, labels = (each.to(device) for each in drawn((1100, 10), torch.float32, generator))
    assert torch.equal(cross_entropy(logits, labels), cross_entropy(logits, labels))


def test_gradcheck(device: torch.device, generator: torch.Generator) -> None:
    logits, labels = (each.to(device) for each in drawn((5, 3), torch.float64, generator))
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: cross_entropy(x, labels, SCALE), logits, fast_mode=True)
    expected = SCALE * exact(logits.detach().cpu(), labels.cpu())[0].sum()
    loss = cross_entropy(logits, labels, SCALE)
    torch.testing.assert_close(loss.cpu().detach(), expected, rtol=1e-14, atol=0)


def test_a_label_that_is_no_class_is_refused() -> None:
    for label in (-1, -100, 3):
        with pytest.raises(ValueError, match="labels holds"):
            cross_entropy(torch.zeros(2, 3), torch.tensor([0, label]))


def test_a_label_that_is_no_class_gives_nan(triton_device: torch.device) -> None:
    from fastdm.kernels.cross_entropy import triton

    for label in (-1, -100, 3, 2**40):
        logits, labels = torch.zeros(2, 3, device=triton_device), torch.tensor([0, label], device=triton_device)
        assert triton.cross_entropy(logits, labels, 1.0).isnan()
        gradient = triton.cross_entropy_backward(torch.ones((), device=triton_device), logits, labels, 1.0)
        assert gradient.isnan().all(1).tolist() == [False, True]


def test_opcheck(device: torch.device, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # It compares storage offsets, which canaries shift.
    logits, labels = (each.to(device) for each in drawn((5, 3), torch.bfloat16, generator))
    torch.library.opcheck(torch.ops.fastdm.cross_entropy.default, (logits, labels, SCALE))
    grad = torch.tensor(2.0, device=device)
    torch.library.opcheck(torch.ops.fastdm.cross_entropy_backward.default, (grad, logits, labels, SCALE))


def test_compiles_without_a_graph_break(device: torch.device, generator: torch.Generator) -> None:
    logits, labels = (each.to(device) for each in drawn((5, 3), torch.float32, generator))

    def loss(x: Tensor) -> Tensor:
        return cross_entropy(x * 2, labels, SCALE)

    grads = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        leaf = logits.clone().requires_grad_()
        function(leaf).backward()
        grads.append(leaf.grad)
    assert torch.equal(*grads)


def test_bad_arguments_are_refused() -> None:
    logits, labels = torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64)
    with pytest.raises(ValueError, match="there are 4 rows of logits and 3 labels"):
        cross_entropy(logits, labels[:3])
    with pytest.raises(TypeError, match=r"labels is torch\.int32"):
        cross_entropy(logits, labels.int())
    with pytest.raises(TypeError, match="logits is torch"):
        cross_entropy(logits.long(), labels)
    with pytest.raises(ValueError, match="logits has the shape"):
        cross_entropy(logits[None], labels)
