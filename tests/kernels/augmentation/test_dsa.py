"""The augmentation against float64, against the transposed map, and against what it must refuse."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from fastdm.kernels import dsa, table
from tests.kernels.augmentation.tables import FAMILIES, draw_table, exact, tolerance

ONE_EACH = [(family,) for family in FAMILIES]
ALL = [FAMILIES]
# Half a unit in the last place where a type rounds, one where the interpreter truncates (bfloat16).
ULP = {torch.float32: 0.0, torch.float64: 0.0, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}


SHAPES = [
    pytest.param(3, 32, 32, id="3x32x32"),
    pytest.param(1, 9, 13, id="grey-odd"),
    pytest.param(3, 21, 16, id="tall"),
]


@pytest.mark.parametrize("families", ONE_EACH + ALL, ids="-".join)
@pytest.mark.parametrize(("c", "h", "w"), SHAPES)
def test_forward_and_gradient_are_those_of_float64(
    c: int, h: int, w: int, families: tuple[str, ...], device: torch.device, generator: torch.Generator
) -> None:
    images = torch.randn(2, c, h, w, generator=generator)
    rows = draw_table(2, families, (h, w), generator)
    group = torch.tensor([1, 0])
    wide = images.double().requires_grad_()
    expected = exact(wide, rows, group)
    grad = torch.randn(expected.shape, generator=generator)
    (expected_grad,) = torch.autograd.grad(expected, wide, grad.double())

    leaf = images.to(device, copy=True).requires_grad_()
    out = dsa(leaf, rows.to(device), group.to(device))
    (grad_leaf,) = torch.autograd.grad(out, leaf, grad.to(device))
    assert (out.cpu() - expected).detach().abs().max() <= tolerance(families, (h, w), float(images.abs().max()))
    # The gradient collects up to 9 outputs with weights that add up to at most 1.5² (enlargement on both axes).
    bound = 2.25 * tolerance(families, (h, w), float(grad.abs().max()))
    assert (grad_leaf.cpu() - expected_grad).abs().max() <= bound


@pytest.mark.parametrize(
    ("size", "families"),
    [
        pytest.param((8, 8), FAMILIES, id="smallest"),
        pytest.param((64, 64), FAMILIES, id="every family"),
        pytest.param((256, 240), ("color", "crop", "rotate"), id="largest"),
    ],
)
def test_images_of_any_size(
    size: tuple[int, int], families: tuple[str, ...], device: torch.device, generator: torch.Generator
) -> None:
    """The larger ones are computed in several programs."""
    images = torch.randn(1, 3, *size, generator=generator)
    rows = draw_table(1, families, size, generator)
    wide, leaf = images.double().requires_grad_(), images.to(device, copy=True).requires_grad_()
    grad = torch.randn(images.shape, generator=generator)
    expected, out = exact(wide, rows), dsa(leaf, rows.to(device))
    assert (out.cpu() - expected).abs().max() <= tolerance(families, size, float(images.abs().max()))
    expected.backward(grad.double())
    out.backward(grad.to(device))
    bound = 2.25 * tolerance(families, size, float(grad.abs().max()))
    assert (leaf.grad.cpu() - wide.grad).abs().max() <= bound


@pytest.mark.parametrize("families", [("crop",), ("cutout",), ("flip",), ("crop", "cutout", "flip"), ()], ids="-".join)
def test_moves_are_exact(families: tuple[str, ...], device: torch.device, generator: torch.Generator) -> None:
    images = torch.randn(8, 3, 12, 10, generator=generator)
    rows = draw_table(8, families, (12, 10), generator)
    assert torch.equal(dsa(images.to(device), rows.to(device)).cpu().double(), exact(images, rows))


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("c", [1, 3])
def test_reads_normalises_and_converts_rows_of_a_pool(
    c: int, dtype: torch.dtype, channels_last: bool, device: torch.device, generator: torch.Generator
) -> None:
    pool = torch.randint(0, 256, (11, c, 16, 16), generator=generator, dtype=torch.uint8)
    mean, std = torch.rand(c, generator=generator), 0.2 + 0.1 * torch.rand(c, generator=generator)
    rows = draw_table(2, FAMILIES, (16, 16), generator)
    rows[0] = table.identity(1)
    index, group = torch.tensor([10, 0, 10, 3]), torch.tensor([0, 1, 1, 0])
    expected = exact(pool, rows, group, index, mean, std)
    out = dsa(
        pool.to(device),
        rows.to(device),
        group.to(device),
        index=index.to(device),
        mean=mean.tolist(),
        std=std.to(device),
        dtype=dtype,
        channels_last=channels_last,
    )
    assert out.dtype == dtype
    assert out.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    largest = float(((1 - mean) / std).max().clamp(min=float((mean / std).max())))
    error = (out.cpu().double() - expected).abs()
    assert (error <= tolerance(FAMILIES, (16, 16), largest) + ULP[dtype] * expected.abs()).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
def test_the_gradient_of_a_half_precision_batch_reaches_float32_images(
    dtype: torch.dtype, channels_last: bool, device: torch.device, generator: torch.Generator
) -> None:
    images = torch.randn(2, 3, 8, 8, generator=generator)
    rows = draw_table(2, ("color", "rotate"), (8, 8), generator)
    leaf = images.to(device, copy=True).requires_grad_()
    out = dsa(leaf, rows.to(device), dtype=dtype, channels_last=channels_last)
    grad = torch.randn(out.shape, generator=generator).to(dtype)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    out.backward(grad.to(device).contiguous(memory_format=memory_format))
    wide = images.double().requires_grad_()
    exact(wide, rows).backward(grad.double())
    assert leaf.grad.dtype == torch.float32
    assert (leaf.grad.cpu() - wide.grad).abs().max() <= 2.25 * tolerance(
        ("color", "rotate"), (8, 8), float(grad.abs().max())
    )


@pytest.mark.parametrize("size", [(4, 24), (24, 4)], ids=["wide", "high"])
def test_the_gradient_through_a_rotation_of_an_oblong_image(
    size: tuple[int, int], device: torch.device, generator: torch.Generator
) -> None:
    """The grid is square in relative coordinates, so that such a rotation is skewed in pixels."""
    row = table.identity(1)
    row[0, table.ROTATE_COS], row[0, table.ROTATE_SIN] = math.cos(1.0), math.sin(1.0)
    images, grad = torch.randn(2, 1, 3, *size, generator=generator, dtype=torch.float64)
    wide, leaf = images.clone().requires_grad_(), images.to(device, copy=True).requires_grad_()
    exact(wide, row).backward(grad)
    dsa(leaf, row.to(device)).backward(grad.to(device))
    assert (leaf.grad.cpu() - wide.grad).abs().max() <= 1e-12


def test_gradcheck(device: torch.device, generator: torch.Generator) -> None:
    images = torch.randn(1, 3, 3, 4, generator=generator, dtype=torch.float64).to(device).requires_grad_()
    rows = draw_table(1, ("color", "crop", "flip", "rotate"), (3, 4), generator).to(device)
    assert torch.autograd.gradcheck(lambda x: dsa(x, rows), images, fast_mode=True)


def test_the_gradient_repeats_bit_for_bit(device: torch.device, generator: torch.Generator) -> None:
    images = torch.randn(2, 3, 16, 16, generator=generator).to(device).requires_grad_()
    rows = draw_table(2, ("color", "rotate"), (16, 16), generator).to(device)
    grad = torch.randn(2, 3, 16, 16, generator=generator).to(device)
    first, second = (torch.autograd.grad(dsa(images, rows), images, grad)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_one_row_for_all_is_that_row_for_each(device: torch.device, generator: torch.Generator) -> None:
    images = torch.randn(3, 1, 8, 8, generator=generator).to(device)
    row = draw_table(1, ("color", "scale"), (8, 8), generator).to(device)
    shared = dsa(images, row)
    assert torch.equal(shared, dsa(images, row.expand(3, -1)))
    assert torch.equal(shared, dsa(images, row, torch.zeros(3, dtype=torch.int64, device=device)))


@pytest.mark.parametrize("n", [0, 1, 257])
def test_any_number_of_images(n: int, device: torch.device, generator: torch.Generator) -> None:
    images = torch.randn(n, 1, 4, 4, generator=generator)
    rows = draw_table(max(n, 1), ("flip",), (4, 4), generator)
    group = torch.arange(n)
    out = dsa(images.to(device), rows.to(device), group.to(device))
    assert torch.equal(out.cpu().double(), exact(images, rows, group))


def test_inputs_need_not_be_contiguous(device: torch.device, generator: torch.Generator) -> None:
    images = torch.randn(4, 8, 8, 3, generator=generator).permute(0, 3, 1, 2)[::2]
    rows = draw_table(4, ("color",), (8, 8), generator)[::2]
    out = dsa(images.to(device), rows.to(device)).cpu()
    assert (out - exact(images, rows)).abs().max() <= tolerance(("color",), (8, 8), float(images.abs().max()))


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("family", ["", "flip"], ids=["as it is", "flipped"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
def test_the_result_has_its_memory_format_whatever_the_images_have(
    dtype: torch.dtype, family: str, channels_last: bool, device: torch.device, generator: torch.Generator
) -> None:
    """A compiled graph relies on it."""
    rows = table.identity(1).to(device)
    rows[0, table.FLIP] = float(family == "flip")
    wanted = torch.channels_last if channels_last else torch.contiguous_format
    for order in ((0, 1, 3, 2), (3, 0, 1, 2)):
        images = torch.randn(3, 3, 3, 3, generator=generator, dtype=dtype).to(device).permute(order)
        out = dsa(images, rows, channels_last=channels_last)
        assert out.is_contiguous(memory_format=wanted)
        back = torch.ops.fastdm.dsa_backward(images, rows, None, dtype)
        assert back.is_contiguous()


def test_opcheck(device: torch.device, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # It compares storage offsets, which canaries shift.
    images = torch.randn(2, 3, 6, 5, generator=generator).to(device)
    rows = draw_table(1, ("color", "flip"), (6, 5), generator).to(device)
    group = torch.zeros(2, dtype=torch.int64, device=device)
    torch.library.opcheck(torch.ops.fastdm.dsa.default, (images, rows, group, None, None, None, torch.float16, True))
    torch.library.opcheck(torch.ops.fastdm.dsa_backward.default, (images, rows, group, torch.float32))


def test_reading_a_pool_compiles_without_a_graph_break(device: torch.device, generator: torch.Generator) -> None:
    pool = torch.randint(0, 256, (5, 3, 6, 6), generator=generator, dtype=torch.uint8).to(device)
    rows = draw_table(2, ("color", "scale"), (6, 6), generator).to(device)
    index, group = torch.tensor([4, 0, 3], device=device), torch.tensor([0, 1, 1], device=device)
    mean, std = torch.rand(2, 3, generator=generator).to(device) + 0.1

    def read(pool: Tensor, index: Tensor) -> Tensor:
        return dsa(pool, rows, group, index=index, mean=mean, std=std, dtype=torch.float16, channels_last=True) * 2

    compiled = torch.compile(read, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(pool, index), read(pool, index))


def test_compiles_without_a_graph_break(device: torch.device, generator: torch.Generator) -> None:
    images = torch.randn(2, 3, 6, 6, generator=generator).to(device)
    rows = draw_table(2, ("color", "scale"), (6, 6), generator).to(device)

    def loss(x: Tensor) -> Tensor:
        return dsa(x * 2, rows, channels_last=True).square().sum()

    grads = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        leaf = images.clone().requires_grad_()
        function(leaf).backward()
        grads.append(leaf.grad)
    assert torch.equal(*grads)


X = torch.zeros(2, 3, 8, 8)
U8 = X.to(torch.uint8)
T = table.identity(2)
SCALED, STRETCHED, MIRRORED, STRAY = (table.identity(2) for _ in range(4))
SCALED[1, table.SCALE_X] = 1 / 1.6
STRETCHED[0, table.ROTATE_SIN] = 1.0
MIRRORED[0, table.SCALE_Y] = -1.0
STRAY[1, table.CONTRAST] = math.inf


@pytest.mark.parametrize(
    ("error", "message", "arguments", "keywords"),
    [
        (TypeError, "images is a list", ([1], T), {}),
        (ValueError, "images has the shape", (X[0], T), {}),
        (ValueError, "1 or 3", (torch.zeros(2, 4, 8, 8), T), {}),
        (TypeError, "images are torch.int32", (X.int(), T), {}),
        (TypeError, "table is torch.float64", (X, T.double()), {}),
        (ValueError, "table has 15 columns", (X, T[:, :15]), {}),
        (ValueError, "table has 3 rows for 2 images", (X, table.identity(3)), {}),
        (ValueError, "table is on meta", (X, T.to("meta")), {}),
        (ValueError, "group has 3 entries for 2 images", (X, T, torch.zeros(3, dtype=torch.int64)), {}),
        (TypeError, "group is torch.int32", (X, T, torch.zeros(2, dtype=torch.int32)), {}),
        (ValueError, "need mean and std", (U8, T), {"mean": [0, 0, 0]}),
        (ValueError, "mean has the shape", (U8, T), {"mean": [0.0], "std": [1, 1, 1]}),
        (ValueError, "belong to uint8", (X, T), {"mean": [0, 0, 0], "std": [1, 1, 1]}),
        (TypeError, "index is torch.float32", (X, T), {"index": torch.zeros(2)}),
        (ValueError, "index them before", (X.clone().requires_grad_(), T), {"index": torch.tensor([0, 1])}),
        (TypeError, "dtype is torch.int64", (X, T), {"dtype": torch.int64}),
        # Values, which only the CPU looks at.
        (ValueError, "index holds 0 to 2", (X, T), {"index": torch.tensor([0, 2])}),
        (ValueError, "index holds -1 to 0", (X, T), {"index": torch.tensor([0, -1])}),
        (ValueError, "group holds 0 to 2", (X, T, torch.tensor([0, 2])), {}),
        (ValueError, r"row 1 .* ratio_scale of at most 1\.5", (X, SCALED), {}),
        (ValueError, "not those of an angle", (X, STRETCHED), {}),
        (ValueError, "not positive", (X, MIRRORED), {}),
        (ValueError, "not finite", (X, STRAY), {}),
        (ValueError, r"std holds \[1.0, 0.0, 1.0\]", (U8, T), {"mean": [0, 0, 0], "std": [1, 0, 1]}),
    ],
)
def test_bad_arguments_are_refused(
    error: type[Exception], message: str, arguments: tuple[Any, ...], keywords: dict[str, Any]
) -> None:
    with pytest.raises(error, match=message):
        dsa(*arguments, **keywords)
