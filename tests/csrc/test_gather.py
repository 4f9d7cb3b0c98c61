"""Gathering and converting in the C++ core against PyTorch."""

import numpy as np
import pytest
import torch
from torch import Tensor

native = pytest.importorskip("fastdm._native")

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
SCALE, SHIFT = [1 / (255 * s) for s in STD], [-m / s for m, s in zip(MEAN, STD, strict=True)]


def pool(count: int, channels: int = 3, height: int = 5, width: int = 7) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, channels, height, width), dtype=torch.uint8, generator=generator)


def canaried(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A contiguous tensor inside a larger one with 16 canaries on either side, filled with a value no pixel has."""
    count = int(np.prod(shape))
    whole = torch.full((count + 32,), 77 if dtype == torch.uint8 else -1e30, dtype=dtype)
    return whole[16 : 16 + count].view(shape), whole


def expected(images: Tensor, index: Tensor, dtype: torch.dtype, layout: str) -> Tensor:
    picked = images[index]
    channels = images.shape[1]
    if dtype != torch.uint8:
        scale, shift = (torch.tensor(v[:channels], dtype=torch.float32).view(-1, 1, 1) for v in (SCALE, SHIFT))
        picked = (picked.float() * scale + shift).to(dtype)
    if layout == "planar":
        return picked
    picked = picked.permute(0, 2, 3, 1)
    return torch.nn.functional.pad(picked, (0, 1)) if layout == "rgbx" else picked


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16], ids=["uint8", "float32", "bfloat16"])
@pytest.mark.parametrize(("layout", "channels"), [("planar", 3), ("planar", 1), ("last", 3), ("last", 1), ("rgbx", 3)])
@pytest.mark.parametrize(
    ("height", "width"), [(5, 7), (33, 40)], ids=["below a cache line", "more than a piece of 1024 pixels"]
)
def test_gather_is_indexing_and_normalising(
    dtype: torch.dtype, layout: str, channels: int, height: int, width: int
) -> None:
    """Bit for bit: both multiply, round, add, round."""
    images = pool(40, channels, height, width)
    index = torch.randint(0, 40, (100,), generator=torch.Generator().manual_seed(1))
    want = expected(images, index, dtype, layout)
    out, whole = canaried(tuple(want.shape), dtype)
    native.gather(images, index, out, layout, SCALE[:channels], SHIFT[:channels])
    assert torch.equal(out, want)
    edges = torch.cat([whole[:16], whole[-16:]])
    assert torch.equal(edges, torch.full_like(edges, 77 if dtype == torch.uint8 else -1e30))


def test_normalising_is_within_rounding_of_the_exact_value() -> None:
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    out = torch.empty(1, 1, 16, 16)
    native.gather(images, torch.zeros(1, dtype=torch.int64), out, "planar", SCALE[:1], SHIFT[:1])
    exact = (images.double() / 255 - MEAN[0]) / STD[0]
    # scale, shift, the product and the sum are rounded once each, by at most half an ulp.
    bound = 2.0**-24 * (2 * images.double() * SCALE[0] + abs(SHIFT[0]) + exact.abs())
    assert ((out - exact).abs() <= bound * (1 + 1e-6)).all()


@pytest.mark.parametrize("layout", ["planar", "rgbx"])
def test_any_number_of_threads_gives_the_same(layout: str) -> None:
    """39 MB in many blocks, to an odd address: larger than most caches, so written past them."""
    images = pool(8, 3, 96, 91)
    index = torch.arange(1500) % 8
    want = expected(images, index, torch.uint8, layout)
    for threads in (1, 2, 0):
        out, _ = canaried(tuple(want.shape), torch.uint8)
        native.gather(images, index, out, layout, threads=threads)
        assert torch.equal(out, want)


def test_nothing_is_gathered_from_an_empty_index() -> None:
    native.gather(pool(0), torch.zeros(0, dtype=torch.int64), torch.empty(0, 3, 5, 7, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("index", "shape", "options", "message"),
    [
        ([0, 4], (2, 3, 5, 7), {}, "Image 4 at position 1 does not exist: there are 4"),
        ([-1], (1, 3, 5, 7), {}, "Image -1 at position 0"),
        ([0], (2, 3, 5, 7), {}, r"out has the shape \[2, 3, 5, 7\] and should have \[1, 3, 5, 7\]"),
        ([0], (1, 5, 7, 4), {"layout": "last"}, r"should have \[1, 5, 7, 3\]"),
        ([0], (1, 3, 5, 7), {"layout": "nhwc"}, "layout 'nhwc' is not one of planar, last, rgbx"),
    ],
)
def test_what_cannot_be_gathered_is_refused(
    index: list[int], shape: tuple[int, ...], options: dict[str, str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        native.gather(pool(4), torch.tensor(index), torch.empty(shape, dtype=torch.uint8), **options)


def test_wrong_types_are_refused() -> None:
    images, index, out = pool(4), torch.tensor([0]), torch.empty(1, 3, 5, 7)
    with pytest.raises(ValueError, match="scale and shift must have one number for each of the 3 channels"):
        native.gather(images, index, out)
    with pytest.raises(TypeError, match="uint8, float32 or bfloat16"):
        native.gather(images, index, out.double(), "planar", SCALE, SHIFT)
    for arguments in [(images.float(), index, out), (images, index.int(), out), (images, index, out[..., ::2])]:
        with pytest.raises(TypeError):
            native.gather(*arguments)
    with pytest.raises(ValueError, match="2 channels"):
        native.gather(pool(4, 2), index, torch.empty(1, 2, 5, 7, dtype=torch.uint8))
    with pytest.raises(ValueError, match="rgbx needs 3 channels"):
        native.gather(pool(4, 1), index, torch.empty(1, 5, 7, 4, dtype=torch.uint8), "rgbx")
