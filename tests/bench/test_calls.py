"""The calls that are timed agree with the public ones, and one that does not is not timed."""

from collections.abc import Callable
from pathlib import Path

import pytest

from bench import calls, report
from bench.harness import records
from tests.bench.schema import saved


@pytest.mark.parametrize("make", calls.calls(smoke=True).values(), ids=calls.calls(smoke=True))
def test_a_call_agrees_with_the_public_one(make: Callable[[], calls.Pair]) -> None:
    pair = make()
    assert pair.error <= pair.tolerance
    pair.ours()
    pair.public()


@pytest.mark.parametrize("draws", ["Siamese", "per image"])
@pytest.mark.parametrize("mode", ["S", "M"])
def test_the_gradient_of_an_augmentation_agrees_with_the_public_one(mode: str, draws: str) -> None:
    pair = calls.augment(10, mode, draws, "with gradient")
    assert pair.error <= pair.tolerance


def test_a_wrong_call_is_not_timed() -> None:
    def never() -> None:
        raise AssertionError

    row = calls.measure(lambda: calls.Pair(never, never, 0.1, 0.0), 1, 0)
    assert not row["correct"]
    assert "seconds" not in row


def test_the_readme_quotes_the_median_of_every_right_call_and_how_many_times_as_fast_it_is(folder: Path) -> None:
    seconds = records.spreads({"fastdm": [1.0, 2.0, 3.0], "public": [5.0, 6.0, 7.0]})
    right = {"name": "slow", "seconds": seconds, "ratio": 3.0}
    saved(calls.SUITE, right, {"name": "wrong", "error": 1.0, "correct": False})
    assert report.block(calls.SUITE, quoted=True).splitlines()[4:] == ["| slow | 2,000 | 6,000 | 3.0 |"]


def test_the_readme_has_a_line_for_every_kind_of_batch_and_a_column_for_every_direction(folder: Path) -> None:
    rows = [
        {"name": name, **about, "threads": threads, "ratio": 1.25 * threads}
        for threads in (1, 2)
        for name, about in calls.augmentations([1, 1024]).items()
    ]
    saved(calls.AUGMENT, *rows)
    lines = report.block(calls.AUGMENT, quoted=True).splitlines()
    assert len(rows) == 2 * 2 * 2 * 2 * 2
    assert len(lines) == 2 + 2 + 8
    assert lines[2] == (
        "| mode | parameters | images | forward, 1 thread | with gradient, 1 thread | forward, 2 threads "
        "| with gradient, 2 threads |"
    )
    assert lines[-1].replace("\u00d7", "x") == "| M | per image | 1,024 | 1.2x | 1.2x | 2.5x | 2.5x |"
