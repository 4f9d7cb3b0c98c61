"""The calls that are timed agree with the public ones, and one that does not is not timed."""

from collections.abc import Callable

import pytest

from bench import calls


@pytest.mark.parametrize("make", calls.calls(smoke=True).values(), ids=calls.calls(smoke=True))
def test_a_call_agrees_with_the_public_one(make: Callable[[], calls.Pair]) -> None:
    pair = make()
    assert pair.error <= pair.tolerance
    pair.ours()
    pair.public()


@pytest.mark.parametrize("siamese", [True, False])
@pytest.mark.parametrize("mode", ["S", "M"])
def test_the_gradient_of_an_augmentation_agrees_with_the_public_one(mode: str, siamese: bool) -> None:
    pair = calls.augment(10, mode, siamese, backward=True)
    assert pair.error <= pair.tolerance


def test_a_wrong_call_is_not_timed() -> None:
    def never() -> None:
        raise AssertionError

    row = calls.measure(lambda: calls.Pair(never, never, 0.1, 0.0), 0)
    assert not row["correct"]
    assert "seconds" not in row
