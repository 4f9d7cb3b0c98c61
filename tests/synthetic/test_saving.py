"""What cannot be written is refused before it is, and what is written can be read again."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fastdm
from fastdm.applications.export import export
from fastdm.data import Dataset, open_dataset
from fastdm.errors import FastDMError
from fastdm.synthetic.initial import random_selection
from fastdm.synthetic.synthetic_set import SyntheticSet, save_public


@pytest.fixture
def dataset() -> Dataset:
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (6, 1, 8, 8), dtype=np.uint8))
    return open_dataset((images, torch.tensor([0, 0, 1, 1, 2, 2])))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ipc": 1.5}, "ipc is 1.5; it must be a whole number of at least 1"),
        ({"ipc": "1"}, "ipc is '1'; it must be a whole number"),
        ({"seed": 0.5}, "seed is 0.5; it must be a whole number of at least 0"),
        ({"seed": 2**63}, r"it must be a whole number of at least 0 and below 2\^63"),
        ({"partition": 1.0}, "partition is 1.0; it must be a whole number"),
    ],
)
def test_numbers_that_are_not_whole_are_refused(dataset: Dataset, options: dict[str, Any], message: str) -> None:
    with pytest.raises(FastDMError, match=message):
        random_selection(dataset, **{"ipc": 1, **options})


@pytest.mark.parametrize("name", ["a.safetensors", "a.pt"])
def test_a_set_of_numpys_numbers_is_written(dataset: Dataset, tmp_path: Path, name: str) -> None:
    random_selection(dataset, np.int64(2), np.int32(3)).save(tmp_path / name)  # type: ignore[arg-type]
    settings = SyntheticSet.load(tmp_path / name).settings
    assert (settings["ipc"], settings["seed"]) == (2, 3)


@pytest.mark.parametrize("name", ["a.safetensors", "a.pt"])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"a": torch.ones(1)}, "settings of a synthetic set must be texts, numbers, .*Tensor"),
        ({"network": 3}, "cannot be written: its setting network is 3; it must be a text"),
    ],
)
def test_settings_that_could_not_be_read_again_are_refused(
    dataset: Dataset, tmp_path: Path, name: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(FastDMError, match=message):
        replace(random_selection(dataset, 1), settings=settings).save(tmp_path / name)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("name", ["a.safetensors", "a.pt", "images_best.pt", "data.pt"])
def test_a_set_that_could_not_be_loaded_is_not_saved(name: str, dataset: Dataset, tmp_path: Path) -> None:
    images = random_selection(dataset, 1).images.clone()
    images[1, 0, 0, 0] = torch.nan
    kind = {"images_best.pt": "mtt", "data.pt": "idc"}.get(name)
    with pytest.raises(FastDMError, match="holds pixels that are not finite numbers"):
        replace(random_selection(dataset, 1), images=images).save(tmp_path / name, format=kind)  # type: ignore[arg-type]
    assert not [*tmp_path.iterdir()]


def test_a_part_of_a_larger_tensor_is_written_alone(dataset: Dataset, tmp_path: Path) -> None:
    whole = torch.zeros(1000, *dataset.image_shape)
    for name, kind in (("a.safetensors", None), ("a.pt", None), ("images.pt", "mtt"), ("data.pt", "idc")):
        replace(random_selection(dataset, 1), images=whole[:3]).save(tmp_path / name, format=kind)  # type: ignore[arg-type]
        assert (tmp_path / name).stat().st_size < whole.nbytes / 10


def test_the_sets_of_one_file_have_one_partition(dataset: Dataset, tmp_path: Path) -> None:
    one = random_selection(dataset, 1)
    other = replace(one, partition=2)
    with pytest.raises(FastDMError, match="the sets of one file must have one partition"):
        save_public([one, other], tmp_path / "a.pt", canvases=True)


def test_the_file_name_tells_the_network_that_the_settings_leave_out(dataset: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "res_DM_some_ConvNetD2_1ipc.pt"
    random_selection(dataset, 1).save(path)
    assert SyntheticSet.load(path).settings["network"] == "ConvNetD2"
    replace(random_selection(dataset, 1), settings={"network": "LeNet"}).save(path)
    assert SyntheticSet.load(path).settings["network"] == "LeNet"


def test_pixels_may_leave_their_range_by_rounding_only(dataset: Dataset) -> None:
    images = random_selection(dataset, 1).images * 0
    for value in (1 + 5e-4, -5e-4):
        images[0, 0, 0, 0] = value
        fastdm.SyntheticSet.from_tensors(images, range(3), dataset=dataset, normalised=False)
    for value in (1.01, -0.01):
        images[0, 0, 0, 0] = value
        with pytest.raises(FastDMError, match=r"though its layout has them in \[0, 1\]"):
            fastdm.SyntheticSet.from_tensors(images, range(3), dataset=dataset, normalised=False)


def test_the_current_folder_is_not_replaced(dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FastDMError, match=r"\. is the current folder; name a new one in it"):
        export(random_selection(dataset, 1), ".")


def test_a_suffix_in_capitals_is_one(dataset: Dataset, tmp_path: Path) -> None:
    export(random_selection(dataset, 1), tmp_path / "a.SAFETENSORS")
    assert len(SyntheticSet.load(tmp_path / "a.SAFETENSORS")) == 3


def test_class_names_that_are_not_utf_8_are_exported(dataset: Dataset, tmp_path: Path) -> None:
    names = ("a", "b", "\udcff")  # as a folder named by the byte 255 gives
    export(replace(random_selection(dataset, 1), class_names=names), tmp_path / "set")
    about = json.loads((tmp_path / "set" / "about.json").read_text(encoding="utf-8"))
    assert about["class_names"] == [*names]
    assert len(open_dataset(tmp_path / "set").train) == 3


def test_soft_labels_of_other_classes_are_refused(dataset: Dataset) -> None:
    images = random_selection(dataset, 1).images
    for classes in (2, 100):
        with pytest.raises(FastDMError, match=f"soft labels for {classes} classes, but its data set has 3"):
            fastdm.SyntheticSet.from_tensors(images[:2], torch.eye(2, classes), dataset=dataset)


def test_a_set_without_any_label_is_refused(dataset: Dataset) -> None:
    with pytest.raises(FastDMError, match="the set holds 3 images and 0 labels; there must be one for each"):
        fastdm.SyntheticSet.from_tensors(random_selection(dataset, 1).images, [], dataset=dataset)


def test_a_data_set_is_to_be_opened(dataset: Dataset, tmp_path: Path) -> None:
    synthetic = random_selection(dataset, 1)
    synthetic.save(tmp_path / "a.pt")
    calls: list[Any] = [
        lambda: SyntheticSet.load(tmp_path / "a.pt", dataset="digits"),  # type: ignore[arg-type]
        lambda: SyntheticSet.from_tensors(synthetic.images, range(3), dataset=Path("digits")),  # type: ignore[arg-type]
    ]
    for call in calls:
        with pytest.raises(FastDMError, match=r"dataset is 'digits'; it must be what fastdm\.open_dataset gives"):
            call()


def test_a_zoom_is_whole(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(FastDMError, match=r"zoom is 1\.5; it must be a whole number of at least 1"):
        random_selection(dataset, 1).save_grid(tmp_path / "a.png", zoom=1.5)  # type: ignore[arg-type]
