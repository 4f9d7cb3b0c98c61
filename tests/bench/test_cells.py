"""Tables out of lines of header, key and format."""

import pytest

from bench.harness import cells, records
from bench.harness.records import Row

ROW: Row = {
    "name": "a|b",
    "ratio": {"public": 2.25},
    "bytes": 3e9,
    "seconds": {"fastdm raised": records.spread([0.002])},
    "error": 1e-3,
    "tolerance": 1e-2,
    "unit": "P",
    "met": False,
    "dm": 70.0,
    "dm_std": 0.5,
    "rounds": {"n": 3, "median": 2.0, "p20": 1.0, "p80": 3.0},
}


@pytest.mark.parametrize(
    ("described", "expected"),
    [
        ("size | name", ("size", "a\\|b")),
        ("times | ratio.public | .1f", ("times", "2.2")),
        ("after | ratio.public | {:.2f} iterations", ("after", "2.25 iterations")),
        ("GB | bytes | .0f/1e9", ("GB", "3")),
        ("ms | fastdm raised | ms", ("ms", "2")),
        ("in its unit | bytes | unit", ("in its unit", "3e+09 P")),
        ("error", ("error", "1.0e-03 ≤ 1.0e-02")),
        ("accuracy | dm | ±", ("accuracy", "70.0 ± 0.5")),
        ("times | rounds | spread", ("times", "2 (1\u20133)")),
        ("met", ("met", "no")),
    ],
)
def test_a_column_is_a_header_a_key_and_a_format(described: str, expected: tuple[str, str]) -> None:
    header, _, row = cells.table(described + "; name", [ROW]).splitlines()
    assert header == f"| {expected[0]} | name |"
    assert row == f"| {expected[1]} | a\\|b |"


def test_columns_end_at_semicolons_and_lines_and_empty_ones_are_left_out() -> None:
    described = """
        size | name; error
        median error | median_error; GB | bytes | .0f/1e9
    """
    header, _, row = cells.table(described, [ROW]).splitlines()
    assert header == "| size | error | GB |"
    assert row == "| a\\|b | 1.0e-03 ≤ 1.0e-02 | 3 |"


def test_a_function_may_stand_in_place_of_the_columns() -> None:
    assert cells.table(lambda rows: f"{len(rows)} rows", [ROW]) == "1 rows"
