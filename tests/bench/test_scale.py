"""The scale suite: a row of a process of its own, and the model of many GPUs."""

import pytest

from bench import scale
from fastdm.condensation.calibration import FIXED_SECONDS


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_process_stays_within_its_plan(ranks: int) -> None:
    row = scale.measure({**scale.BASE, "classes": 3}, ranks)
    assert row["seconds"]["iteration"]["n"] == scale.ITERATIONS - 1
    assert row["base_bytes"] < row["peak_bytes"]
    assert row["error"] <= row["tolerance"]


def test_more_gpus_share_all_but_the_fixed_part() -> None:
    one, all_of_them = scale.model(1), scale.model(500)
    assert all_of_them["serial_share"] * all_of_them["modelled_seconds"] == pytest.approx(FIXED_SECONDS)
    shared = (row["modelled_seconds"] - FIXED_SECONDS for row in (one, all_of_them))
    assert next(shared) / next(shared) == pytest.approx(500, rel=1e-3)
