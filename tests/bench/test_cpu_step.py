"""The gate in front of a step's speed: the step passes, and what either error is for does not."""

import torch

from bench.cpu_step import check, compared


def test_the_step_passes() -> None:
    errors = check("scaling-10", 1)
    assert errors["correct"], errors


def test_one_wrong_image_and_a_small_error_of_all_are_seen() -> None:
    exact = torch.randn(10, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert compared(exact, exact)["correct"]

    one_wrong = exact.clone()
    one_wrong[3] = 0
    errors = compared(one_wrong, exact)
    assert errors["median_error"] == 0
    assert not errors["correct"]

    errors = compared(1.0001 * exact, exact)
    assert errors["error"] <= errors["tolerance"]
    assert not errors["correct"]

    assert not compared(exact * torch.nan, exact)["correct"]
