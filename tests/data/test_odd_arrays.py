"""Arrays and names that a program may hand over by mistake: one sentence says which, and what would be right."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fastdm
from fastdm.errors import FastDMError

IMAGES = np.random.default_rng(0).integers(0, 256, (8, 3, 8, 8), dtype=np.uint8)
LABELS = np.arange(8) % 2
CONDENSE: dict[str, Any] = {"ipc": 1, "iterations": 1, "batch_real": 2, "network": "ConvNetD1", "device": "cpu"}


@pytest.mark.parametrize(
    ("images", "labels", "sentence"),
    [
        (IMAGES, np.array([*"aabbccdd"]), "its labels are not an array of numbers, but of <U1"),
        (IMAGES, np.array([0, "b"] * 4, dtype=object), "its labels are not an array of numbers, but of object"),
        (np.zeros(8, dtype=[("red", "u1")]), LABELS, "its images are not an array of numbers, but of "),
        (np.ma.masked_array(IMAGES, IMAGES == 3), LABELS, "some of its images are masked; fill them"),
        (np.zeros((8, 3, 0, 8), np.uint8), LABELS, "images of shape .8, 3, 0, 8.; .* at least one pixel"),
        (IMAGES.astype(np.int64), LABELS, "pixels are torch.int64; they must be uint8"),
    ],
)
def test_what_is_no_image_or_label_is_named(images: Any, labels: Any, sentence: str) -> None:
    with pytest.raises(FastDMError, match=sentence):
        fastdm.open_dataset((images, labels))


def test_an_array_with_nothing_masked_is_one_of_numbers() -> None:
    opened = fastdm.open_dataset((np.ma.masked_array(IMAGES), LABELS))
    assert torch.equal(opened.train.images, fastdm.open_dataset((IMAGES, LABELS)).train.images)


def test_many_floating_point_images_are_all_converted() -> None:
    """They are in pieces of 4,096."""
    pixels = np.random.default_rng(0).integers(0, 256, (9000, 1, 1, 2), dtype=np.uint8)
    opened = fastdm.open_dataset((pixels / 255, np.sort(np.arange(9000) % 2)))
    np.testing.assert_array_equal(opened.train.images, pixels)


def test_one_class_and_one_pixel_are_enough(tmp_path: Path) -> None:
    one = fastdm.open_dataset((IMAGES, LABELS * 0, IMAGES, LABELS * 0))
    assert len(fastdm.condense(one, **CONDENSE)) == 1
    assert fastdm.evaluate(
        fastdm.random_selection(one, 1), one, networks=["ConvNetD1"], num_eval=1, epochs=1, device="cpu"
    ).mean == {"ConvNetD1": 1.0}
    pixel = fastdm.open_dataset((IMAGES[:, :, :1, :1], LABELS))
    assert fastdm.condense(pixel, **{**CONDENSE, "network": "MLP"}).images.shape == (2, 3, 1, 1)


@pytest.mark.parametrize("name", ["a\0b", "x" * 300])
def test_names_that_no_file_can_have_are_a_sentence_wherever_one_is_written(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    dataset = fastdm.open_dataset((IMAGES, LABELS))
    synthetic = fastdm.random_selection(dataset, 1)
    calls = [
        lambda: synthetic.save(f"{name}.pt"),
        lambda: synthetic.save(f"{name}.safetensors"),
        lambda: synthetic.save_grid(f"{name}.png"),
        lambda: fastdm.export(synthetic, name),
        lambda: fastdm.export(synthetic, f"{name}.npz"),
        lambda: fastdm.pack(dataset, name),
        lambda: fastdm.condense(dataset, save_path=name, **CONDENSE),
        lambda: fastdm.SyntheticSet.load(f"{name}.pt"),
        lambda: fastdm.NetworkPool.load(name),
    ]
    for call in calls:
        with pytest.raises(FastDMError, match=r"zero byte|name too long|is not a pool"):
            call()
    assert [*tmp_path.iterdir()] == []


def test_a_seed_of_more_than_63_bits_is_refused_for_its_size() -> None:
    with pytest.raises(FastDMError, match=r"it must be a whole number of at least 0 and below 2\^63"):
        fastdm.Settings(seed=2**70).resolve(fastdm.open_dataset((IMAGES, LABELS)), torch.device("cpu"))


def test_a_dangling_link_is_named_once(tmp_path: Path) -> None:
    fastdm.export(fastdm.random_selection(fastdm.open_dataset((IMAGES, LABELS)), 1), tmp_path / "set")
    (tmp_path / "set" / "0" / "1.png").symlink_to("nowhere.png")
    with pytest.raises(FastDMError, match=r"1\.png is not a readable image: No such file or directory$"):
        fastdm.open_dataset(tmp_path / "set")
