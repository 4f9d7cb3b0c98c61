"""The drawing of the augmentation's parameters against its rules, spelled out column by column."""

import math

import pytest
import torch

from fastdm.augmentation import DSA_STREAM, FAMILIES, Strategy
from fastdm.kernels import draw_tables, table
from fastdm.kernels.random import reference

ALL = "_".join(FAMILIES)
SIZE = (32, 24)
ULP = 2.0**-23


def drawn(strategy: Strategy, device: torch.device, *, one_family: bool = False) -> list[torch.Tensor]:
    key, rows = torch.tensor([5, 9], device=device), torch.arange(40, device=device) * 3
    return [rows.cpu() for rows in strategy.draw(key, rows, SIZE, one_family=one_family)]


def literal_row(strategy: Strategy, u: list[float]) -> dict[int, float]:
    """Every parameter from its uniform number, in Python's float64."""

    def integer(first: int, end: int, number: float) -> int:
        return first + min(math.floor((end - first) * number), end - first - 1)

    row = {table.BRIGHTNESS: u[1] - 0.5, table.SATURATION: 2 * u[2], table.CONTRAST: u[3] + 0.5}
    for axis, column in enumerate((table.SHIFT_ROWS, table.SHIFT_COLS)):
        row[column] = integer(*strategy.crop_range(SIZE[axis]), u[4 + axis])
    for axis, column in enumerate((table.CUTOUT_TOP, table.CUTOUT_LEFT)):
        hole = strategy.hole(SIZE[axis])
        first = integer(*strategy.cutout_range(SIZE[axis]), u[6 + axis]) - hole // 2
        row[column] = max(first, 0)
        row[column + 1] = min(first + hole - 1, SIZE[axis] - 1)
    row[table.FLIP] = float(u[8] < 0.5)
    for axis, column in enumerate((table.SCALE_X, table.SCALE_Y)):
        row[column] = u[9 + axis] * (1.2 - 1 / 1.2) + 1 / 1.2
    angle = math.radians(30) * (u[11] - 0.5)
    return row | {table.ROTATE_COS: math.cos(angle), table.ROTATE_SIN: math.sin(angle)}


def test_every_column_follows_its_rule(device: torch.device) -> None:
    strategy = Strategy.parse(ALL, "M")
    (found,) = drawn(strategy, device)
    numbers = reference.uniform(torch.tensor([5, 9]), torch.arange(40) * 3, 12, DSA_STREAM)
    for row, u in zip(found.double(), numbers.tolist(), strict=True):
        for column, value in literal_row(strategy, u).items():
            # Rounded constants, a product and a sum of numbers below 2; integers have no rounding to suffer.
            slack = 0 if table.SHIFT_ROWS <= column <= table.FLIP else 4 * ULP
            assert abs(row[column] - value) <= slack, column
        assert row[14:].eq(0).all()


@pytest.mark.parametrize("one_family", [False, True])
def test_one_family_is_chosen_by_the_first_number(one_family: bool, device: torch.device) -> None:
    strategy = Strategy.parse(ALL)
    (found,) = drawn(strategy, device, one_family=one_family)
    (everything,) = drawn(Strategy.parse(ALL, "M"), device)
    numbers = reference.uniform(torch.tensor([5, 9]), torch.arange(40) * 3, 1, DSA_STREAM)[:, 0]
    columns = {
        "color": (0, 3),
        "crop": (3, 5),
        "cutout": (5, 9),
        "flip": (9, 10),
        "scale": (10, 12),
        "rotate": (12, 14),
    }
    chosen = set()
    for g in range(40):
        family = FAMILIES[min(int(6 * float(numbers[0 if one_family else g])), 5)]
        expected = table.identity(1)[0]
        own = slice(*columns[family])
        expected[own] = everything[g, own]
        assert torch.equal(found[g], expected)
        chosen.add(family)
    assert len(chosen) == (1 if one_family else 6)


def test_runs_share_out_the_columns(device: torch.device) -> None:
    first, second = drawn(Strategy.parse("rotate_color", "M"), device)
    (both,) = drawn(Strategy.parse("color_rotate", "M"), device)
    identity = table.identity(40)
    assert torch.equal(first[:, 12:], both[:, 12:])
    assert torch.equal(first[:, :12], identity[:, :12])
    assert torch.equal(second[:, :12], both[:, :12])
    assert torch.equal(second[:, 12:], identity[:, 12:])


def test_opcheck(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # It compares storage offsets, which canaries shift.
    key, rows, source = (torch.tensor(values, device=device) for values in ([1, 2], [0, 5, 8], [3] * 16))
    rules = torch.ones(11, 16, device=device)
    for choose in (False, True):
        torch.library.opcheck(torch.ops.fastdm.draw_tables.default, (key, rows, source, rules, 4, 3, choose, False, 2))


def test_bad_arguments_are_refused() -> None:
    key, rows, source, rules = (
        torch.tensor([1, 2]),
        torch.arange(3),
        torch.zeros(16, dtype=torch.int64),
        torch.ones(11, 16),
    )
    with pytest.raises(ValueError, match=r"they must be \[16\] and \[11, 16\]"):
        draw_tables(key, rows, source, rules[:3], numbers=4, runs=1, choose=True, stream=2)
    with pytest.raises(ValueError, match="source holds 4 to 4; it must stay within 0 to 3"):
        draw_tables(key, rows, source + 4, rules, numbers=4, runs=1, choose=True, stream=2)
    with pytest.raises(ValueError, match="runs is 0"):
        draw_tables(key, rows, source, rules, numbers=4, runs=0, choose=True, stream=2)
    with pytest.raises(TypeError, match="rules is torch"):
        draw_tables(key, rows, source, rules.double(), numbers=4, runs=1, choose=True, stream=2)
