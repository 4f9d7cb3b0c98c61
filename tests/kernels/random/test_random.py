"""Philox, uniform and draw against published vectors and a plain statement of Floyd's algorithm."""

import pytest
import torch
from torch import Tensor

from fastdm.kernels import draw, uniform, uniform_weights, use_backend
from fastdm.kernels.numerics import DRAW_STREAM
from fastdm.kernels.random import reference


@pytest.mark.parametrize(
    ("key", "counter", "words"),
    [
        ((0, 0), (0, 0, 0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 2, (0xFFFFFFFF,) * 4, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0xA4093822, 0x299F31D0),
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
    ids=["zeros", "ones", "pi"],
)
def test_philox_gives_the_published_vectors(
    key: tuple[int, ...], counter: tuple[int, ...], words: tuple[int, ...]
) -> None:
    assert tuple(int(w) for w in reference.philox(key, [torch.tensor(c) for c in counter])) == words


def test_uniform_takes_the_upper_24_bits_of_its_words(device: torch.device) -> None:
    seed, step, stream = 0x1234_5678_9ABC_DEF0, 3, 2
    rows = torch.tensor([0, 7, 2**32 - 1])
    values = uniform(torch.tensor([seed, step], device=device), rows.to(device), 6, stream).cpu()
    for r, row in enumerate(rows.tolist()):
        for j in range(6):
            counter = [torch.tensor(v) for v in (step, row, stream, j // 4)]
            word = int(reference.philox((seed & 0xFFFFFFFF, seed >> 32), counter)[j % 4])
            assert values[r, j].item() == (word >> 8) / 2**24


LAYOUT = [(0, 0, 5, 3, 9), (192, 135, 1, 1, 5), (256, 140, 2, 2100, 1)]  # the last one goes beyond a row of numbers
BOUNDS = [0.2, 1 / 3, 0.7]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])  # the interpreter does not round to bfloat16
def test_weights_are_uniform_numbers_between_their_bounds(dtype: torch.dtype, device: torch.device) -> None:
    """Bit for bit, wherever they lie; what lies between the parts is not written."""
    key = torch.tensor([-3, 8])
    out = torch.full((4480,), 77.0, dtype=dtype, device=device)
    uniform_weights(out, key.to(device), LAYOUT, BOUNDS, 3)
    numbers = reference.uniform(key, torch.arange(2), 4096, 3).flatten()
    expected = torch.full((4480,), 77.0, dtype=dtype)
    for (start, first, outer, channels, pixels), bound in zip(LAYOUT, BOUNDS, strict=True):
        count = outer * channels * pixels
        drawn = ((numbers[first : first + count] - 0.5) * (2 * bound)).to(dtype)
        expected[start : start + count] = drawn.view(outer, channels, pixels).transpose(1, 2).flatten()
    assert torch.equal(out.cpu(), expected)


def floyd(key: Tensor, class_offsets: Tensor, n: int, label: int) -> list[int]:
    words = reference.random_words(key, torch.tensor([label]), n, DRAW_STREAM)[0].tolist()
    start, size = int(class_offsets[label]), int(class_offsets[label + 1] - class_offsets[label])
    taken: set[int] = set()
    for i, word in enumerate(words):
        last = size - n + i
        candidate = word * (last + 1) >> 32
        taken.add(last if candidate in taken else candidate)
    return sorted(start + t for t in taken)


@pytest.mark.parametrize("n", [0, 1, 2, 50])
def test_draw_is_floyds_algorithm(n: int, device: torch.device) -> None:
    offsets = torch.tensor([0, 50, 101, 5101])  # The first class is drawn whole, the last one hardly repeats.
    for step in range(2):
        key = torch.tensor([-5, step])
        expected = [floyd(key, offsets, n, label) for label in range(3)]
        assert draw(key.to(device), offsets.to(device), n).tolist() == expected
        classes = torch.tensor([2, 0], device=device)
        assert draw(key.to(device), offsets.to(device), n, classes).tolist() == [expected[2], expected[0]]


@pytest.mark.parametrize("n", [64, 65, 256, 1500])  # a power of two, one more, DM's batch, and several per thread
def test_large_draws_are_floyds_algorithm_too(n: int, device: torch.device) -> None:
    key, offsets = torch.tensor([7, 0]), torch.tensor([0, n + n // 8])  # Most candidates repeat.
    assert draw(key.to(device), offsets.to(device), n).tolist() == [floyd(key, offsets, n, 0)]


def test_each_class_has_its_own_draw_whatever_is_drawn_with_it(device: torch.device) -> None:
    # Classes of which many images are drawn are drawn from four at a time, others one by one: all kinds of neighbours.
    sizes = torch.tensor([40, 60, 41, 300, 320, 321, 5000, 44, 45, 330, 46, 47, 48, 49, 50])
    offsets = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
    key = torch.tensor([3, 9])
    expected = [floyd(key, offsets, 40, label) for label in range(len(sizes))]
    for classes in (torch.arange(len(sizes)), torch.tensor([14, 14, 0, 5, 1, 2, 3, 6, 13])):
        found = draw(key.to(device), offsets.to(device), 40, classes.to(device))
        assert found.tolist() == [expected[label] for label in classes]


def test_a_kernel_refuses_more_than_it_can_hold(triton_device: torch.device) -> None:
    with pytest.raises(ValueError, match=r"8193 images per class .* draw at most 8192"):
        draw(*(torch.tensor(values, device=triton_device) for values in ([7, 0], [0, 10_000])), 8193)


def test_draw_is_uniform_over_subsets() -> None:
    # 2 of 4 images: 6 subsets, 6,000 draws; each count is 1,000 ± 29 (binomial), so ± 6 deviations is ± 173.
    offsets = torch.arange(6001) * 4
    with use_backend("reference"):
        subsets = draw(torch.tensor([1, 0]), offsets, 2) - offsets[:-1, None]
    counts = (subsets[:, 0] * 4 + subsets[:, 1]).bincount(minlength=16)
    assert counts.count_nonzero() == 6
    assert (counts[counts > 0] - 1000).abs().max() < 173


@pytest.mark.parametrize(("step", "word"), [(-1, 2**32 - 1), (2**32, 0), (2**40 + 7, 7)])
def test_a_step_is_a_word_of_32_bits(step: int, word: int, device: torch.device) -> None:
    key, same = (torch.tensor([5, each], device=device) for each in (step, word))
    rows, offsets = torch.arange(3, device=device), torch.tensor([0, 9, 30], device=device)
    assert torch.equal(uniform(key, rows, 5, 1), uniform(same, rows, 5, 1))
    for replace in (False, True):
        assert torch.equal(draw(key, offsets, 4, replace=replace), draw(same, offsets, 4, replace=replace))


def drawn_with_repeats(key: Tensor, class_offsets: Tensor, n: int, label: int) -> list[int]:
    words = reference.random_words(key, torch.tensor([label]), n, DRAW_STREAM)[0].tolist()
    start, size = int(class_offsets[label]), int(class_offsets[label + 1] - class_offsets[label])
    return sorted(start + (word * size >> 32) for word in words)


@pytest.mark.parametrize("n", [0, 1, 50, 1025])  # the last one is more than a program draws
def test_draw_with_replace_is_its_definition(n: int, device: torch.device) -> None:
    offsets = torch.tensor([0, 1, 8, 5108])  # one image, fewer than are drawn, hardly a repeat
    key = torch.tensor([-5, 3])
    expected = [drawn_with_repeats(key, offsets, n, label) for label in range(3)]
    assert draw(key.to(device), offsets.to(device), n, replace=True).tolist() == expected
    classes = torch.tensor([2, 0], device=device)
    found = draw(key.to(device), offsets.to(device), n, classes, replace=True)
    assert found.tolist() == [expected[2], expected[0]]


def test_bad_arguments_are_refused() -> None:
    key, offsets = torch.tensor([0, 0]), torch.tensor([0, 5, 8])
    with pytest.raises(
        ValueError, match="class 1 has 3 images, but 4 are to be drawn: draw fewer, or with replace=True"
    ):
        draw(key, offsets, 4)
    with pytest.raises(ValueError, match="class 1 has 0 images, but 2 are to be drawn: there is nothing to draw from"):
        draw(key, torch.tensor([0, 5, 5]), 2, replace=True)
    with pytest.raises(ValueError, match="classes holds 0 to 2"):
        draw(key, offsets, 1, torch.tensor([0, 2]))
    with pytest.raises(TypeError, match="key is torch"):
        draw(key.int(), offsets, 1)
    with pytest.raises(ValueError, match="stream is"):
        uniform(key, torch.arange(3), 4, 2**32)
    with pytest.raises(ValueError, match="seed, step"):
        uniform(torch.zeros(3, dtype=torch.int64), torch.arange(3), 4, 0)
    with pytest.raises(ValueError, match=r"the part \(4, 0, 1, 1, 5\) of the layout does not fit into 8 elements"):
        uniform_weights(torch.zeros(8), key, [(4, 0, 1, 1, 5)], [1.0], 3)
    with pytest.raises(ValueError, match="1 parts in the layout and 2 bounds"):
        uniform_weights(torch.zeros(8), key, [(0, 0, 1, 1, 5)], [1.0, 2.0], 3)
    with pytest.raises(TypeError, match="it must be floating point"):
        uniform_weights(torch.zeros(8).int(), key, [(0, 0, 1, 1, 5)], [1.0], 3)


def test_opcheck(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # It compares storage offsets, which canaries shift.
    key, offsets = torch.tensor([1, 2], device=device), torch.tensor([0, 5, 8], device=device)
    torch.library.opcheck(torch.ops.fastdm.uniform.default, (key, offsets, 6, 2))
    out = torch.zeros(4480, device=device)
    layout = [number for part in LAYOUT for number in part]
    torch.library.opcheck(torch.ops.fastdm.uniform_weights.default, (out, key, layout, BOUNDS, 3))
    for replace in (False, True):
        torch.library.opcheck(torch.ops.fastdm.draw.default, (key, offsets, 3, torch.arange(2, device=device), replace))


def test_draws_compile_without_a_graph_break(device: torch.device) -> None:
    offsets = torch.tensor([0, 5, 8], device=device)

    def both(key: Tensor) -> tuple[Tensor, Tensor]:
        return draw(key, offsets, 3), uniform(key, offsets, 3, 5)

    key = torch.tensor([4, 2], device=device)
    for ours, compiled in zip(both(key), torch.compile(both, fullgraph=True, backend="aot_eager")(key), strict=True):
        assert torch.equal(ours, compiled)
