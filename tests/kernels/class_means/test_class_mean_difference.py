"""Class means and the loss of distribution matching against their formulas in float64."""

from itertools import pairwise
from types import ModuleType

import pytest
import torch
from torch import Tensor

from fastdm.kernels import class_mean_difference, class_means, extension
from fastdm.kernels.class_means import native, reference

FLOAT32_EPS = 2.0**-23
# Ragged, a class of one row, a class longer than a block of rows, classes empty on one side.
REAL = [0, 3, 4, 44, 44, 46]
SYNTHETIC = [0, 2, 3, 5, 7, 7]


def exact(real: Tensor, synthetic: Tensor, real_offsets: list[int], synthetic_offsets: list[int]) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for c in range(len(real_offsets) - 1):
        rows = real[real_offsets[c] : real_offsets[c + 1]]
        others = synthetic[synthetic_offsets[c] : synthetic_offsets[c + 1]]
        if len(rows) and len(others):
            total = total + (rows.mean(0) - others.mean(0)).square().sum()
    return total


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_means_are_those_of_float64(dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> None:
    features = torch.randn(REAL[-1], 2100, generator=generator).to(dtype)  # more than a task of the C++ form has
    means = class_means(features.to(device), torch.tensor(REAL, device=device)).cpu()
    assert means.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    for mean, (first, last) in zip(means, pairwise(REAL), strict=True):
        rows = features[first:last].double()
        expected = rows.mean(0) if len(rows) else torch.zeros(2100, dtype=torch.float64)
        # n rows are added up with an error below n ε of the sum of their sizes; dividing rounds once more.
        tolerance = (len(rows) + 1) * torch.finfo(means.dtype).eps * rows.abs().sum(0) / max(len(rows), 1)
        assert ((mean - expected).abs() <= tolerance).all()


@pytest.mark.parametrize("features", [1, 64, 130], ids=lambda d: f"D{d}")  # less than, exactly, more than one block
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"])
def test_loss_and_gradient_are_those_of_float64(
    features: int, dtype: torch.dtype, device: torch.device, generator: torch.Generator
) -> None:
    real = torch.randn(REAL[-1], features, generator=generator).to(dtype)
    synthetic = torch.randn(SYNTHETIC[-1], features, generator=generator).to(dtype)
    wide = synthetic.double().requires_grad_()
    expected = exact(real.double(), wide, REAL, SYNTHETIC)
    expected.backward()

    leaf = synthetic.to(device, copy=True).requires_grad_()
    offsets = [torch.tensor(o, device=device) for o in (REAL, SYNTHETIC)]
    loss = class_mean_difference(real.to(device), leaf, *offsets)
    (3 * loss).backward()
    assert loss.dtype == torch.float32
    # A mean of 40 rows is off by less than 40 ε of its terms, a sum of 5 D squares by less than 5 D ε: all positive.
    assert (loss.cpu() - expected).abs() <= (40 + 5 * features) * FLOAT32_EPS * expected
    ulp = {torch.float32: 0.0, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}[dtype]
    error = (leaf.grad.cpu().double() - 3 * wide.grad).abs()
    assert (error <= 6 * 40 * FLOAT32_EPS * 4 + ulp * (3 * wide.grad).abs()).all()
    assert leaf.grad.cpu()[5:7].eq(0).all()


@pytest.mark.parametrize("wide", ["real", "synthetic"])
def test_float64_on_one_side_is_float64_for_both(wide: str, device: torch.device, generator: torch.Generator) -> None:
    real, synthetic = torch.randn(2, 8, 5, generator=generator)
    sides = {"real": real, "synthetic": synthetic}
    sides[wide] = torch.randn(8, 5, generator=generator, dtype=torch.float64)
    exact_leaf = sides["synthetic"].to(torch.float64, copy=True).requires_grad_()
    expected = exact(sides["real"].double(), exact_leaf, [0, 3, 8], [0, 6, 8])
    expected.backward()
    leaf = sides["synthetic"].to(device, copy=True).requires_grad_()
    offsets = [torch.tensor(o, device=device) for o in ([0, 3, 8], [0, 6, 8])]
    loss = class_mean_difference(sides["real"].to(device), leaf, *offsets)
    loss.backward()
    assert loss.dtype == torch.float64
    # A mean of 6 rows is off by less than 6 ε of its terms, a sum of 10 squares by less than 10 ε.
    expected = expected.detach()
    assert abs(float(loss.detach() - expected)) <= (2 * 6 + 10) * 2.0**-52 * float(expected)
    rounded = 0 if wide == "synthetic" else FLOAT32_EPS / 2  # to the type of synthetic
    error = (leaf.grad.cpu().double() - exact_leaf.grad).abs()
    assert (error <= rounded * exact_leaf.grad.abs() + 4 * 6 * 2.0**-52 * 4).all()


def test_one_class_of_any_size(device: torch.device, generator: torch.Generator) -> None:
    real, synthetic = torch.randn(257, 3, generator=generator), torch.randn(1, 3, generator=generator)
    offsets = [torch.tensor([0, n], device=device) for n in (257, 1)]
    loss = class_mean_difference(real.to(device), synthetic.to(device), *offsets).cpu()
    expected = exact(real.double(), synthetic.double(), [0, 257], [0, 1])
    # A sum of 257 rows is off by less than 257 ε of the largest, and so is their mean; its square counts it twice.
    largest = float(torch.cat([real, synthetic]).abs().max())
    assert abs(float(loss - expected)) <= 3 * 2 * (2 * largest) * 257 * FLOAT32_EPS * largest


def test_real_may_be_the_means_themselves(device: torch.device, generator: torch.Generator) -> None:
    """Loss and gradient are those of classes of one row each, bit for bit."""
    means = torch.randn(5, 70, generator=generator).to(device)
    offsets = torch.tensor(SYNTHETIC, device=device)
    found = []
    for real_offsets in (None, torch.arange(6, device=device)):
        leaf = torch.randn(7, 70, generator=generator.manual_seed(1)).to(device).requires_grad_()
        loss = class_mean_difference(means, leaf, real_offsets, offsets)
        found.append((loss, *torch.autograd.grad(loss, leaf)))
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


def test_the_loss_repeats_bit_for_bit(device: torch.device, generator: torch.Generator) -> None:
    real = torch.randn(REAL[-1], 200, generator=generator).to(device)
    offsets = torch.tensor(REAL, device=device)
    first, second = (class_mean_difference(real, real.flip(0), offsets, offsets) for _ in range(2))
    assert torch.equal(first, second)


def test_gradcheck(device: torch.device, generator: torch.Generator) -> None:
    real, synthetic = torch.randn(2, 5, 3, generator=generator, dtype=torch.float64).to(device)
    offsets = torch.tensor([0, 2, 5], device=device)
    assert torch.autograd.gradcheck(
        lambda s: class_mean_difference(real, s, offsets, offsets), synthetic.requires_grad_(), fast_mode=True
    )


def test_opcheck(device: torch.device, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # It compares storage offsets, which canaries shift.
    features = torch.randn(5, 3, generator=generator).to(device)
    offsets = torch.tensor([0, 2, 5], device=device)
    ops = torch.ops.fastdm
    torch.library.opcheck(ops.class_means.default, (features, offsets))
    torch.library.opcheck(ops.class_mean_difference.default, (features, features, offsets, offsets, "zero"))
    torch.library.opcheck(ops.class_mean_difference.default, (features[:2], features, None, offsets, "zero"))
    torch.library.opcheck(
        ops.class_mean_difference_backward.default,
        (torch.tensor(1.0, device=device), features[:2], offsets, 5, torch.float16),
    )


def test_compiles_without_a_graph_break(device: torch.device, generator: torch.Generator) -> None:
    features = torch.randn(5, 3, generator=generator).to(device)
    offsets = torch.tensor([0, 2, 5], device=device)

    def loss(synthetic: Tensor) -> Tensor:
        return class_mean_difference(features, synthetic * 2, offsets, offsets)

    grads = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        leaf = features.flip(0).clone().requires_grad_()
        function(leaf).backward()
        grads.append(leaf.grad)
    assert torch.equal(*grads)


def test_both_sides_may_be_one_tensor(device: torch.device, generator: torch.Generator) -> None:
    """A GPU may add the rows of the two sides in another order, so that their means differ by rounding."""
    features = torch.randn(5, 3, generator=generator).to(device).requires_grad_()
    offsets = torch.tensor([0, 2, 5], device=device)
    # A mean of 3 rows: two additions, the reciprocal of 3 and a product, each off by ε / 2 of the largest row at most.
    apart = 2 * 4 * FLOAT32_EPS / 2 * float(features.abs().max())
    for function in (class_mean_difference, torch.compile(class_mean_difference, fullgraph=True, backend="aot_eager")):
        loss = function(features, features, offsets, offsets)
        (gradient,) = torch.autograd.grad(loss, features)
        assert loss <= 2 * 3 * apart**2  # classes × features
        assert gradient.abs().max() <= 2 * apart / 2  # 2 × difference / rows, of which the smaller class has two


def test_bad_arguments_are_refused() -> None:
    features, offsets = torch.zeros(4, 3), torch.tensor([0, 2, 4])
    with pytest.raises(ValueError, match="real has 2 features and synthetic 3"):
        class_mean_difference(features[:, :2], features, offsets, offsets)
    with pytest.raises(ValueError, match="3 real_offsets and 2 synthetic_offsets"):
        class_mean_difference(features, features, offsets, offsets[[0, 2]])
    with pytest.raises(ValueError, match="real has 4 rows for 2 classes; give real_offsets"):
        class_mean_difference(features, features, None, offsets)
    with pytest.raises(ValueError, match="synthetic_offsets must rise from 0 to the number of rows, 4"):
        class_mean_difference(features, features, offsets, torch.tensor([0, 2, 5]))
    with pytest.raises(ValueError, match="class 0 is empty"):
        class_mean_difference(features, features, offsets, torch.tensor([0, 0, 4]), empty="error")
    with pytest.raises(ValueError, match="empty is 'skip'"):
        class_mean_difference(features, features, offsets, offsets, empty="skip")
    with pytest.raises(TypeError, match="synthetic is torch"):
        class_mean_difference(features, features.long(), offsets, offsets)


# --- the C++ form ----------------------------------------------------------------------------------------------------


def of_form(form: ModuleType, real: Tensor, synthetic: Tensor, offsets: list[Tensor | None]) -> list[Tensor]:
    """Loss, difference and gradient of a form."""
    loss, difference = form.class_mean_difference(real, synthetic, *offsets, "zero")
    grad, rows = torch.tensor(0.3), len(synthetic)
    back = form.class_mean_difference_backward(grad, difference, offsets[1], rows, synthetic.dtype)
    return [loss, difference, back]


@pytest.mark.skipif(extension.load() is None, reason="fastdm was installed without its core")
@pytest.mark.parametrize("features", [1, 64, 130, 2100])  # 2,100 features are more than a task has
@pytest.mark.parametrize("dtypes", [(torch.float32,) * 2, (torch.bfloat16,) * 2, (torch.float32, torch.bfloat16)])
def test_the_native_form_has_the_bits_of_the_reference(
    features: int, dtypes: tuple[torch.dtype, torch.dtype], generator: torch.Generator
) -> None:
    """It adds rows one by one in their order, as PyTorch does; the loss, whose order is PyTorch's, is that of ≤ 32,767
    squares, which all stay with one thread."""
    real = torch.randn(REAL[-1], features, generator=generator).to(dtypes[0])
    synthetic = torch.randn(SYNTHETIC[-1], features, generator=generator).to(dtypes[1])
    real_offsets, synthetic_offsets = torch.tensor(REAL), torch.tensor(SYNTHETIC)
    assert torch.equal(*(form.class_means(real, real_offsets) for form in (native, reference)))
    for rows, offsets in ((real, real_offsets), (real[:5], None)):
        sides = rows, synthetic, [offsets, synthetic_offsets]
        pairs = zip(of_form(native, *sides), of_form(reference, *sides), strict=True)
        for ours, theirs in pairs:
            assert ours.dtype == theirs.dtype
            assert torch.equal(ours, theirs)


@pytest.mark.skipif(extension.load() is None, reason="fastdm was installed without its core")
def test_the_native_form_does_not_depend_on_threads(generator: torch.Generator) -> None:
    classes, width = 40, 2100  # more than 32,767 squares
    real, synthetic = (torch.randn(n * classes, width, generator=generator) for n in (3, 2))
    offsets: list[Tensor | None] = [torch.arange(classes + 1) * n for n in (3, 2)]
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            extension.load().use_threads(threads)
            found.append([*of_form(native, real, synthetic, offsets), native.class_means(real, offsets[0])])
    finally:
        torch.set_num_threads(before)
    for others in found[1:]:
        assert all(torch.equal(*pair) for pair in zip(found[0], others, strict=True))


def test_the_extension_refuses_what_does_not_fit() -> None:
    core = pytest.importorskip("fastdm._native")
    rows, offsets, out = torch.zeros(4, 3), torch.tensor([0, 2, 4]), torch.zeros(2, 3)
    with pytest.raises(ValueError, match="synthetic_offsets must rise from 0 to 4"):
        core.class_mean_difference(rows, rows, offsets, torch.tensor([0, 5, 4]), out)
    with pytest.raises(ValueError, match=r"real has the shape \[4, 3\] and should have \[2, 3\]"):
        core.class_mean_difference(rows, rows, None, offsets, out)
    with pytest.raises(ValueError, match="synthetic_offsets must rise from 0 to 3"):
        core.class_mean_difference_backward(1.0, out, offsets, torch.zeros(3, 3))
    with pytest.raises(ValueError, match="offsets must rise from 0 to 4"):
        core.class_means(rows, torch.tensor([0, 2, 3]), out)
    with pytest.raises(TypeError, match="must be float32 or bfloat16"):
        core.class_mean_difference(rows.double(), rows, offsets, offsets, out)
