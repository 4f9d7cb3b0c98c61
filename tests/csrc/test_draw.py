"""Random numbers and draws of the C++ core, compared with their definition in Python integers."""

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from scipy import stats

native = pytest.importorskip("fastdm._native")

DRAW_STREAM = 1


def philox(key: Sequence[int], counter: Sequence[int]) -> list[int]:
    k, x = list(key), list(counter)
    for _ in range(10):
        even, odd = 0xD2511F53 * x[0], 0xCD9E8D57 * x[2]
        x = [(odd >> 32) ^ x[1] ^ k[0], odd & 0xFFFFFFFF, (even >> 32) ^ x[3] ^ k[1], even & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return x


def word(seed: int, step: int, row: int, stream: int, j: int) -> int:
    return philox((seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF), (step, row, stream, j // 4))[j % 4]


def draw_by_definition(seed: int, step: int, class_id: int, first: int, size: int, n: int) -> list[int]:
    taken: set[int] = set()
    for i in range(n):
        last = size - n + i
        pick = word(seed, step, class_id, DRAW_STREAM, i) * (last + 1) >> 32
        taken.add(last if pick in taken else pick)
    return [first + pick for pick in sorted(taken)]


def draw(
    seed: int, step: int, sizes: Sequence[int], n: int, classes: Sequence[int] | None = None, replace: bool = False
) -> np.ndarray:
    offsets = np.cumsum([0, *sizes], dtype=np.int64)
    ids = np.arange(len(sizes)) if classes is None else np.array(classes, dtype=np.int64)
    out = np.full((len(ids), n), -1, dtype=np.int64)
    native.draw(seed, step, offsets, ids, out, replace)
    return out


def test_the_definition_matches_the_published_known_answers() -> None:
    """Random123's known-answer file (kat_vectors), philox4x32 with 10 rounds."""
    ones = 0xFFFFFFFF
    assert philox((0, 0), (0, 0, 0, 0)) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    assert philox((ones, ones), (ones,) * 4) == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]
    pi = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344, 0xA4093822, 0x299F31D0)
    assert philox(pi[4:], pi[:4]) == [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]


@pytest.mark.parametrize("seed", [0, 7, 2**40 + 3, -3], ids=["zero", "low half", "both halves", "negative"])
@pytest.mark.parametrize("n", [1, 4, 11], ids=["less than a block", "a block", "blocks and a part"])
def test_uniform_is_its_definition(seed: int, n: int) -> None:
    rows, stream, step = np.array([0, 3, 2**32 - 1]), 2**32 - 1, 5
    out = np.full((3, n), np.nan, dtype=np.float32)
    native.uniform(seed, step, rows, stream, out)
    expected = [[(word(seed, step, int(r), stream, j) >> 8) * 2.0**-24 for j in range(n)] for r in rows]
    np.testing.assert_array_equal(out, np.array(expected, dtype=np.float64).astype(np.float32))


@pytest.mark.parametrize(
    ("sizes", "n"),
    [([1], 1), ([5, 64, 65], 5), ([300, 256, 1000], 256), ([9] * 40, 3)],
    ids=["one image", "a whole class", "bitmap words", "many classes"],
)
def test_draw_is_its_definition(sizes: list[int], n: int) -> None:
    starts = np.cumsum([0, *sizes])
    expected = [draw_by_definition(2**40 + 3, 9, c, int(starts[c]), size, n) for c, size in enumerate(sizes)]
    np.testing.assert_array_equal(draw(2**40 + 3, 9, sizes, n), expected)


def test_a_class_draws_the_same_alone_and_among_others() -> None:
    sizes = [50, 60, 70, 80]
    np.testing.assert_array_equal(draw(1, 2, sizes, 20, classes=[3, 1]), draw(1, 2, sizes, 20)[[3, 1]])


def test_every_subset_is_equally_likely() -> None:
    """Chi-square over all C(6, 3) = 20 subsets; the draws are fixed, so the outcome is too."""
    subsets = {subset: i for i, subset in enumerate(itertools.combinations(range(6), 3))}
    counts = np.zeros(len(subsets))
    sizes = [6] * 200
    for step in range(100):
        for row, indices in enumerate(draw(11, step, sizes, 3)):
            counts[subsets[tuple(indices - 6 * row)]] += 1
    assert stats.chisquare(counts).pvalue > 1e-3


def test_every_image_of_a_large_class_is_equally_likely() -> None:
    counts = np.zeros(1281)
    for step in range(2000):
        counts[draw(3, step, [1281], 256)[0]] += 1
    # Without replacement the counts vary less than multinomial ones, by the factor (m - n) / (m - 1).
    statistic = ((counts - counts.mean()) ** 2 / counts.mean()).sum() / ((1281 - 256) / 1280)
    assert 1e-3 < stats.chi2.sf(statistic, 1280) < 1 - 1e-3


def test_draw_with_replace_is_its_definition() -> None:
    sizes, seed, step = [1, 5, 2000], 2**40 + 3, 9
    starts = np.cumsum([0, *sizes])
    expected = [
        sorted(int(starts[c]) + (word(seed, step, c, DRAW_STREAM, i) * size >> 32) for i in range(11))
        for c, size in enumerate(sizes)
    ]
    np.testing.assert_array_equal(draw(seed, step, sizes, 11, replace=True), expected)


def test_with_replace_every_sequence_is_equally_likely() -> None:
    """Chi-square over the 10 ways to draw 3 of 3 images, sorted: each of the 27 sequences has the same probability."""
    ways = list(itertools.combinations_with_replacement(range(3), 3))
    expected = [sum(tuple(sorted(s)) == way for s in itertools.product(range(3), repeat=3)) for way in ways]
    counts = dict.fromkeys(ways, 0)
    for step in range(100):
        for row, indices in enumerate(draw(11, step, [3] * 200, 3, replace=True)):
            counts[tuple(int(index) - 3 * row for index in indices)] += 1
    assert stats.chisquare(list(counts.values()), np.array(expected) * (20_000 / 27)).pvalue > 1e-3


def test_from_an_empty_class_nothing_is_drawn() -> None:
    with pytest.raises(ValueError, match="class 0 has 0 images, but 2 are to be drawn: there is nothing to draw from"):
        draw(0, 0, [0], 2, replace=True)
    assert draw(0, 0, [0], 0, replace=True).shape == (1, 0)


@pytest.mark.parametrize(
    ("offsets", "classes", "shape", "message"),
    [
        ([0, 5], [0], (1, 6), "class 0 has 5 images, but 6 are to be drawn: draw fewer, or with replace=True"),
        ([0, 5], [1], (1, 2), "classes holds 1 to 1; it must stay within 0 to 0"),
        ([0, 5], [-1], (1, 2), "classes holds -1 to -1; it must stay within 0 to 0"),
        ([5, 0], [0], (1, 2), "does not rise at class 0"),
        ([-9, 0], [0], (1, 2), "does not rise at class 0"),
        ([5, -(2**63)], [0], (1, 2), "does not rise at class 0"),
        ([0, 5], [0, 0], (1, 2), r"out has the shape \[1, 2\] and should have \[2, 2\]"),
        ([], [0], (1, 2), "class_offsets is empty"),
        ([0, 2**32], [0], (1, 2), "2\\^32 images"),
    ],
)
def test_an_impossible_draw_is_refused(
    offsets: list[int], classes: list[int], shape: tuple[int, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        native.draw(0, 0, np.array(offsets, np.int64), np.array(classes, np.int64), np.zeros(shape, np.int64))


def test_wrong_dtypes_and_readonly_results_are_refused() -> None:
    offsets, classes, out = np.array([0, 5]), np.array([0]), np.zeros((1, 2), np.int64)
    out.flags.writeable = False
    for arguments in [
        (offsets.astype(np.int32), classes, np.zeros((1, 2), np.int64)),
        (offsets, classes, np.zeros((1, 2), np.float64)),
        (offsets, classes, np.zeros((2, 2), np.int64).T[:1]),
        (offsets, classes, out),
    ]:
        with pytest.raises(TypeError):
            native.draw(0, 0, *arguments)
