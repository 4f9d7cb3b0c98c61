"""The picture for people: every image is in it, where its class stands."""

import numpy as np
import pytest
import torch
from torch import Tensor

from fastdm.synthetic.picture import ACROSS, MOST, picture


def plain(classes: int, ipc: int, channels: int = 3, side: int = 16) -> Tensor:
    """Images of one value each, which grows from class to class and image to image."""
    values = torch.arange(1, classes * ipc + 1, dtype=torch.uint8).view(-1, 1, 1, 1)
    return values.expand(-1, channels, side, side)


@pytest.mark.parametrize(("classes", "ipc", "channels"), [(10, 1, 1), (4, 12, 3), (1, 1, 3), (7, 3, 1)])
def test_every_image_is_shown_once_in_order(classes: int, ipc: int, channels: int) -> None:
    sheet = np.asarray(picture(plain(classes, ipc, channels), ["name"] * classes, ipc))
    flat = sheet if channels == 1 else sheet[..., 0]
    places = []
    for value in range(1, classes * ipc + 1):
        rows, columns = np.nonzero(flat == value)
        # 64 by 64 screen pixels; text is anti-aliased and may add a few of any value.
        middle = int(np.median(rows)), int(np.median(columns))
        assert (flat[middle[0] - 20 : middle[0] + 20, middle[1] - 20 : middle[1] + 20] == value).all()
        places.append(middle)
    first = [places[number * ipc] for number in range(classes)]
    assert len(set(places)) == classes * ipc
    assert first == sorted(first, key=lambda place: (place[1], place[0]))
    for number in range(classes):
        own = places[number * ipc : (number + 1) * ipc]
        assert own[:ACROSS] == sorted(own[:ACROSS], key=lambda place: place[1])


@pytest.mark.parametrize(("classes", "ipc"), [(10, 1), (10, 10), (100, 1), (200, 10)])
def test_it_is_no_portrait(classes: int, ipc: int) -> None:
    width, height = picture(torch.zeros(classes * ipc, 3, 32, 32, dtype=torch.uint8), ["a"] * classes, ipc).size
    assert width >= height


def test_what_is_left_out_is_said() -> None:
    whole = picture(torch.zeros(2 * MOST, 1, 8, 8, dtype=torch.uint8), ["a", "b"], MOST).size
    more = picture(torch.zeros(2 * MOST + 2, 1, 8, 8, dtype=torch.uint8), ["a", "b"], MOST + 1).size
    assert more[0] == whole[0]
    assert more[1] > whole[1]  # by the caption


def test_of_many_large_images_a_few_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of ImageNet's thousand classes: whole, 10 images of 224 by 224 pixels of each would take 1.5 GB."""
    images = torch.zeros(20 * 10, 1, 64, 64, dtype=torch.uint8)
    whole = picture(images, ["a"] * 20, 10).size
    monkeypatch.setattr("fastdm.synthetic.picture.LARGEST", 20 * 2 * 64 * 64)
    few = picture(images, ["a"] * 20, 10).size
    assert few[0] * few[1] < 0.5 * whole[0] * whole[1]
    monkeypatch.setattr("fastdm.synthetic.picture.LARGEST", 1)
    assert picture(images, ["a"] * 20, 10).size < few


def test_names_of_any_text_are_drawn_as_text() -> None:
    assert picture(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), ["a\nb\x1b[31m", "x" * 1000], 1).size[0] < 1000
