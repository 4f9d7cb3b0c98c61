"""The calls that are timed agree with the public ones, and one that does not is not timed."""

from collections.abc import Callable

import pytest

from bench import calls


@pytest.mark.parametrize("make", calls.CALLS.values(), ids=calls.CALLS)
def test_a_call_agrees_with_the_public_one(make: Callable[[], calls.Pair]) -> None:
    pair = make()
    assert pair.error <= pair.tolerance
    pair.ours()
    pair.public()


def test_a_wrong_call_is_not_timed() -> None:
    def never() -> None:
        raise AssertionError

    row = calls.measure(lambda: calls.Pair(never, never, 0.1, 0.0), 0)
    assert not row["correct"]
    assert "seconds" not in row


def test_every_op_is_among_what_is_timed_by_itself() -> None:
    assert {"dsa", "norm_relu_pool", "class_mean_difference", "draw", "uniform"} < calls.singles().keys()
