"""Strategies and their draws; that the tables are applied right is the business of tests/kernels."""

import math

import pytest
import torch

from fastdm.augmentation import FAMILIES, Strategy, augment
from fastdm.errors import FastDMError
from fastdm.kernels import table
from fastdm.synthetic.partition import expand
from tests.oracles import apply_row

ALL = "_".join(FAMILIES)
COLUMNS = {
    "color": [table.BRIGHTNESS, table.SATURATION, table.CONTRAST],
    "crop": [table.SHIFT_ROWS, table.SHIFT_COLS],
    "cutout": [table.CUTOUT_TOP, table.CUTOUT_BOTTOM, table.CUTOUT_LEFT, table.CUTOUT_RIGHT],
    "flip": [table.FLIP],
    "scale": [table.SCALE_X, table.SCALE_Y],
    "rotate": [table.ROTATE_COS, table.ROTATE_SIN],
}


def key(seed: int = 0, step: int = 0) -> torch.Tensor:
    return torch.tensor([seed, step])


def test_mode_s_draws_every_family_equally_often() -> None:
    rows = 6000
    (drawn,) = Strategy.parse(ALL).draw(key(), torch.arange(rows), (32, 32))
    changed = drawn != table.identity(rows)
    counts = []
    for family, columns in COLUMNS.items():
        applied = changed[:, columns].any(1)
        others = [column for name in FAMILIES if name != family for column in COLUMNS[name]]
        assert not changed[applied][:, others].any(), family
        # A flip that comes up tails, and the one crop in 81 that moves nothing, leave no trace in the table.
        visible = {"flip": 1 / 2, "crop": 80 / 81}.get(family, 1.0)
        counts.append(int(applied.sum()) / visible)
    # Binomial(6000, 1/6): standard deviation 29; the flips' count is doubled, and so is its deviation.
    assert all(abs(count - rows / 6) < 5 * 58 for count in counts), counts


def test_mode_m_draws_every_family_with_its_range() -> None:
    (drawn,) = Strategy.parse(ALL, "M").draw(key(), torch.arange(4000), (32, 24))
    ranges = {
        table.BRIGHTNESS: (-0.5, 0.5),
        table.SATURATION: (0.0, 2.0),
        table.CONTRAST: (0.5, 1.5),
        table.SHIFT_ROWS: (-4, 4),
        table.SHIFT_COLS: (-3, 3),
        table.CUTOUT_TOP: (0, 24),  # first row of the hole: offset 0…32 less 8, clamped
        table.CUTOUT_BOTTOM: (7, 31),
        table.CUTOUT_LEFT: (0, 18),
        table.CUTOUT_RIGHT: (5, 23),
        table.FLIP: (0, 1),
        table.SCALE_X: (1 / 1.2, 1.2),
        table.SCALE_Y: (1 / 1.2, 1.2),
        table.ROTATE_COS: (math.cos(math.radians(15)), 1.0),
        table.ROTATE_SIN: (-math.sin(math.radians(15)), math.sin(math.radians(15))),
    }
    for column, (low, high) in ranges.items():
        values = drawn[:, column]
        assert values.min() >= low - 1e-6, column
        assert values.max() <= high + 1e-6, column
        # Over 4000 uniform draws the ends are nearly reached: the gap is beyond 1 % with probability 1e-17.
        assert values.min() <= low + 0.01 * (high - low), column
        assert values.max() >= high - 0.01 * (high - low), column
    assert torch.equal(drawn[:, table.SHIFT_ROWS], drawn[:, table.SHIFT_ROWS].round())


def test_draws_depend_on_seed_step_and_row_only() -> None:
    strategy = Strategy.parse(ALL, "M")
    (drawn,) = strategy.draw(key(5, 7), torch.arange(10), (32, 32))
    (some,) = strategy.draw(key(5, 7), torch.tensor([8, 2]), (32, 32))
    assert torch.equal(some, drawn[[8, 2]])
    for other in (key(5, 8), key(6, 7)):
        (changed,) = strategy.draw(other, torch.arange(10), (32, 32))
        assert not (changed[:, : table.FLIP] == drawn[:, : table.FLIP]).all(1).any()


def test_one_family_for_all_rows() -> None:
    families = set()
    for step in range(20):
        (drawn,) = Strategy.parse("color_scale_rotate").draw(key(0, step), torch.arange(8), (32, 32), one_family=True)
        changed = (drawn != table.identity(8)).any(0)
        applied = [family for family, columns in COLUMNS.items() if changed[columns].any()]
        assert len(applied) == 1
        families.add(applied[0])
        assert len(drawn[:, COLUMNS[applied[0]][0]].unique()) == 8  # each image has parameters of its own
    assert families == {"color", "scale", "rotate"}


@pytest.mark.parametrize("order", ["rotate_scale_flip_cutout_crop_color", "scale_color_flip_crop"])
def test_any_order_of_mode_m(order: str) -> None:
    """Families in another order than the op's are applied in theirs: compared with the literal ones, one by one."""
    x = torch.randn(2, 3, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    strategy = Strategy.parse(order, "M")
    tables = strategy.draw(key(1, 2), torch.arange(2), (12, 12))
    assert len(tables) == len(strategy.runs()) > 1
    expected = []
    for image in range(2):
        y = x[image : image + 1]
        for family in order.split("_"):
            row = table.identity(1)[0]
            run = next(i for i, families in enumerate(strategy.runs()) if family in families)
            row[COLUMNS[family]] = tables[run][image, COLUMNS[family]]
            y = apply_row(y, row)
        expected.append(y)
    # The table is float32, its arithmetic float64, so that only the grid's rounding differs.
    torch.testing.assert_close(augment(x, tables), torch.cat(expected), rtol=0, atol=1e-6)


def test_no_strategy_gathers_normalises_and_converts() -> None:
    pool = torch.arange(5 * 3 * 4 * 4, dtype=torch.uint8).view(5, 3, 4, 4)
    index = torch.tensor([4, 0])
    out = augment(pool, [], index=index, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3), dtype=torch.bfloat16)
    mean, std = torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1), torch.tensor([0.2, 0.25, 0.3]).view(3, 1, 1)
    expected = (pool[index] / 255 - mean) / std
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), expected, rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize(
    ("text", "message"),
    [("color_blur", "unknown augmentation 'blur'"), ("flip_flip", "names a family twice"), ("Color", "unknown")],
)
def test_bad_strategies(text: str, message: str) -> None:
    with pytest.raises(FastDMError, match=message):
        Strategy.parse(text)


def test_bad_strengths() -> None:
    with pytest.raises(FastDMError, match=r"ratio_scale is 1\.6; it must lie between 1 and 1\.5"):
        Strategy(("scale",), ratio_scale=1.6)
    with pytest.raises(FastDMError, match="ratio_cutout is 0; it is a share"):
        Strategy(("cutout",), ratio_cutout=0)
    with pytest.raises(FastDMError, match="mode 'X' is unknown"):
        Strategy(("cutout",), mode="X")  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [(4, 4), (4, 16), (16, 4)])
def test_a_hole_of_side_0_masks_nothing(size: tuple[int, int]) -> None:
    """Along one axis or both; the other side is 2 of 16 pixels."""
    tables = Strategy(("cutout",), ratio_cutout=0.1).draw(key(), torch.arange(200), size)
    images = torch.ones(200, 1, *size)
    assert torch.equal(augment(images, tables), images)


def test_none_is_no_augmentation() -> None:
    for text in ("none", "None", "", None):
        assert not Strategy.parse(text)
        assert Strategy.parse(text).draw(key(), torch.arange(3), (8, 8)) == []


def test_what_is_kept_of_a_call_in_inference_mode_serves_a_gradient() -> None:
    strategy = Strategy.parse("flip", "S")
    for mode in (True, False):
        with torch.inference_mode(mode):
            images = torch.rand(2, 3, 26, 22, requires_grad=not mode)  # a size that no other test has
            tables = strategy.draw(torch.tensor([0, 0]), torch.arange(2), (26, 22))
            out = augment(augment(expand(images, 2), []), tables, torch.arange(2).repeat_interleave(4))
    out.sum().backward()
    assert images.grad is not None
    assert bool((images.grad != 0).any())
