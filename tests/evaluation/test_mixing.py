"""The draws of the protocol "idc": distributions, and cutmix pixel by pixel."""

import torch
from torch import Tensor

from fastdm.evaluation.mixing import draw_mixture, draw_tables
from fastdm.evaluation.protocol import Protocol
from fastdm.kernels import table

SIZE = (16, 12)
DRAWS = 2000
FAMILIES = {
    "crop": [table.SHIFT_ROWS, table.SHIFT_COLS],
    "scale": [table.SCALE_X, table.SCALE_Y],
    "rotate": [table.ROTATE_COS, table.ROTATE_SIN],
}
CUTOUT = [table.CUTOUT_TOP, table.CUTOUT_BOTTOM, table.CUTOUT_LEFT, table.CUTOUT_RIGHT]


def tables_of(strategy: str, step: int, rows: int = 8) -> Tensor:
    protocol = Protocol(["ConvNet"], strategy, name="idc")
    (found,) = draw_tables(protocol, torch.tensor([3, step]), torch.arange(rows), SIZE)
    return found


def test_color_and_flip_always_and_one_of_the_others_per_batch() -> None:
    counts = dict.fromkeys(FAMILIES, 0)
    flips: list[Tensor] = []
    colors: list[Tensor] = []
    for step in range(DRAWS):
        rows = tables_of("color_crop_cutout_flip_scale_rotate", step)
        identity = table.identity(len(rows))
        changed = (rows != identity).any(0)
        used = [family for family, columns in FAMILIES.items() if changed[columns].any()]
        assert len(used) == 1
        assert not changed[CUTOUT].any()
        counts[used[0]] += 1
        flips.append(rows[:, table.FLIP])
        colors.append(rows[:, [table.BRIGHTNESS, table.SATURATION, table.CONTRAST]])
    # Four standard deviations of a binomial share.
    assert all(abs(count / DRAWS - 1 / 3) < 4 * (2 / 9 / DRAWS) ** 0.5 for count in counts.values())
    flip, color = torch.cat(flips), torch.cat(colors)
    assert abs(flip.mean() - 0.5) < 4 * (0.25 / len(flip)) ** 0.5
    for values, (low, high) in zip(color.T, ((-0.5, 0.5), (0, 2), (0.5, 1.5)), strict=True):
        assert low <= values.min() < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < values.max() < high
        deviation = (high - low) / (12 * len(values)) ** 0.5
        assert abs(values.mean() - (low + high) / 2) < 4 * deviation


def test_families_that_the_strategy_leaves_out_are_left_out() -> None:
    for step in range(50):
        rows = tables_of("color_crop_scale", step)
        assert (rows[:, table.FLIP] == 0).all()
        assert (rows[:, FAMILIES["rotate"]] == table.identity(1)[:, FAMILIES["rotate"]]).all()
    protocol = Protocol(["ConvNet"], "none", name="idc")
    assert draw_tables(protocol, torch.tensor([0, 0]), torch.arange(4), SIZE) == []


def test_cutmix_mixes_half_of_the_batches_by_boxes_of_the_drawn_area() -> None:
    height, width = SIZE
    mixed = 0
    shares, tops = [], []
    for step in range(DRAWS):
        mixture = draw_mixture(torch.tensor([1, step]), torch.arange(6), SIZE)
        assert mixture.partner.sort().values.tolist() == list(range(6))
        (top, bottom), (left, right) = ([int(end) for end in ends] for ends in (mixture.rows, mixture.columns))
        assert 0 <= top <= bottom <= height
        assert 0 <= left <= right <= width
        assert abs(mixture.share.item() - (1 - (bottom - top) * (right - left) / (height * width))) < 1e-6
        if bottom > top and right > left:
            mixed += 1
            tops.append((top + bottom) / 2)
            shares.append(mixture.share.item())
    # A drawn box is empty where ⌊12 · √(1 − λ)⌋ // 2 is 0, that is √(1 − λ) < 1 / 6: one in 36.
    expected = 0.5 * (1 - 1 / 36)
    assert abs(mixed / DRAWS - expected) < 4 * (0.25 / DRAWS) ** 0.5
    assert min(shares) < 0.4
    assert max(shares) > 0.95
    assert abs(sum(tops) / len(tops) - height / 2) < 4 * height / (12 * len(tops)) ** 0.5 + 0.5


def test_a_mixed_image_has_the_box_of_its_partner() -> None:
    images = torch.randn(6, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    for step in range(20):
        mixture = draw_mixture(torch.tensor([2, step]), torch.arange(6), SIZE)
        (top, bottom), (left, right) = ([int(end) for end in ends] for ends in (mixture.rows, mixture.columns))
        expected = images.clone()
        expected[:, :, top:bottom, left:right] = images[mixture.partner][:, :, top:bottom, left:right]
        assert torch.equal(mixture(images), expected)
