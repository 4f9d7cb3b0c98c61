"""Sets with a partition: what they decode to, and their files."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import fastdm
from fastdm.applications.inspection import inspect
from fastdm.data.pool import Dataset
from fastdm.errors import FastDMError
from fastdm.evaluation.training import LabelledImages
from fastdm.synthetic import initial
from fastdm.synthetic.partition import expand
from fastdm.synthetic.public_file import read_public
from fastdm.synthetic.synthetic_set import SyntheticSet
from tests.oracles import random_dataset


@pytest.fixture
def dataset() -> Dataset:
    return random_dataset([20, 24, 22], (3, 8, 8))


def test_a_set_decodes_to_four_images_per_canvas(dataset: Dataset) -> None:
    canvases = fastdm.random_selection(dataset, 2, partition=2)
    decoded = canvases.expand()
    assert (canvases.ipc, decoded.ipc, decoded.partition) == (2, 8, 1)
    assert torch.equal(decoded.images, expand(canvases.images, 2))
    assert decoded.labels.tolist() == [0] * 8 + [1] * 8 + [2] * 8
    assert decoded.expand() is decoded
    assert len(canvases.as_dataset()) == 24
    examples = LabelledImages.of(canvases, dataset.mean, dataset.std, torch.device("cpu"))
    assert torch.equal(examples.images, decoded.images)
    assert torch.equal(examples.labels, decoded.labels)


def test_canvases_do_not_depend_on_how_many_are_made_at_once(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = fastdm.random_selection(dataset, 3, partition=2)
    monkeypatch.setattr(initial, "_AT_ONCE", 4)  # of nine
    assert torch.equal(fastdm.random_selection(dataset, 3, partition=2).images, whole.images)


def test_both_formats_keep_what_they_say(dataset: Dataset, tmp_path: Path) -> None:
    canvases = fastdm.random_selection(dataset, 2, partition=2)
    canvases.save(tmp_path / "set.safetensors")
    loaded = SyntheticSet.load(tmp_path / "set.safetensors")
    assert loaded.partition == 2
    assert torch.equal(loaded.images, canvases.images)
    assert inspect(tmp_path / "set.safetensors")["partition"] == 2
    canvases.save(tmp_path / "decoded.pt")
    canvases.save(tmp_path / "canvases.pt", canvases=True)
    for name, images in (("decoded.pt", canvases.expand().images), ("canvases.pt", canvases.images)):
        ((found, labels),) = read_public(tmp_path / name).sets
        assert torch.equal(found, images)
        assert labels is not None
        assert len(labels) == len(images)
        assert SyntheticSet.load(tmp_path / name).partition == (2 if name == "canvases.pt" else 1)
    canvases.save(tmp_path / "data.pt", format="idc")
    ((pixels, _),) = read_public(tmp_path / "data.pt").sets
    mean, std = dataset.mean[0], dataset.std[0]
    torch.testing.assert_close(pixels, (canvases.images * std + mean).clamp(0, 1), rtol=0, atol=0)


def test_a_set_without_partition_is_written_as_before(dataset: Dataset, tmp_path: Path) -> None:
    fastdm.random_selection(dataset, 1).save(tmp_path / "set.safetensors")
    with safe_open(tmp_path / "set.safetensors", "pt") as file:
        about = json.loads(file.metadata()["about"])
    assert "partition" not in about
    assert SyntheticSet.load(tmp_path / "set.safetensors").partition == 1


def test_what_cannot_be_divided_or_filled_is_refused(dataset: Dataset) -> None:
    with pytest.raises(FastDMError, match="partition is 3, but images of 8x8 pixels"):
        fastdm.random_selection(dataset, 1, partition=3)
    with pytest.raises(FastDMError, match="at most 5, the size of the smallest class / 2²"):
        fastdm.random_selection(dataset, 6, partition=2)
    with pytest.raises(FastDMError, match="with 4 images in each, but class 'class 0' of random has 20"):
        fastdm.condense(dataset, 6, partition=2, iterations=0, device="cpu")
    with pytest.raises(FastDMError, match="partition is 3, but images of 8x8 pixels"):
        fastdm.condense(dataset, 1, partition=3, iterations=0, device="cpu")
