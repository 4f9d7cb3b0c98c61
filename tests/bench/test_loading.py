"""Loading: every row is there, a missed target has a reason, and memory is bounded."""

import importlib.util
import os
from pathlib import Path

import pytest

from bench import loading

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("fastdm._native") is None, reason="fastdm was installed without its core"
)
REAL = os.environ.get("FASTDM_DATA")


def test_loading_has_every_row_and_its_memory_is_bounded() -> None:
    rows = [*loading.measure(Path(REAL or "data"), *loading.SIZES["smoke"])]
    names = [row["name"] for row in rows]
    baselines = ["best sequential copy", "index_select(out=)", "index_select to float32", "numpy memmap", "FFCV raw"]
    baselines += ["the public code", "share of gather's time", "a default mapping", "bytes wanted"]
    baselines += ["DataLoader with 2 workers", "over Pillow", "two threads over one"] if REAL else []
    assert not [baseline for baseline in baselines if not any(baseline in name for name in names)]
    (resident,) = (row for row in rows if "resident" in row["name"])
    assert resident["met"], resident


def test_a_missed_target_has_its_reason() -> None:
    missed = loading.row("a", [0.5, 0.6], 1.0, "why")
    assert not missed["met"]
    assert missed["note"].startswith("why")
    assert "note" not in loading.row("a", [1.5], 1.0, "why")
    assert loading.row("a", [0.5], 1.0, at_most=True)["met"]
    assert not loading.row("a", [1.5], 1.0, at_most=True)["met"]
    assert "met" not in loading.row("a", [1.5])


def test_a_ratio_is_of_times_of_the_same_round() -> None:
    row = loading.faster("a", [1.0, 2.0], [4.0, 4.0], 100)
    assert row["ratio"]["median"] == 3.0
    assert row["images_per_second"] == 67
    assert row["baseline_images_per_second"] == 25
