"""Condensed sets that others have made, in and out; ours on disks that fill."""

import dataclasses
import json
import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from fastdm.applications.inspection import inspect
from fastdm.data import Dataset, open_dataset
from fastdm.errors import FastDMError
from fastdm.synthetic.synthetic_set import SyntheticSet, dataset_name, save_public
from fastdm.system.files import crc32
from tests.disk import files_of_at_most

CLASSES, IPC = 3, 2
IMAGES = torch.randn(CLASSES * IPC, 3, 6, 6, generator=torch.Generator().manual_seed(0))
UNIT = torch.rand(CLASSES * IPC, 3, 6, 6, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(CLASSES).repeat_interleave(IPC)
ORDER = torch.tensor([3, 0, 4, 1, 5, 2])


@pytest.fixture
def dataset() -> Dataset:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 6, 6, 3), dtype=np.uint8)
    return open_dataset((pixels, [0, 1, 2] * 2), name="zoo")


@pytest.fixture
def synthetic() -> SyntheticSet:
    settings = {"ipc": 2, "network": "ConvNet", "strategy": "flip", "lr_img": 1.0, "seed": 3, "precision": None}
    return SyntheticSet(IMAGES, ("ape", "bee", "cow"), (0.5, 0.4, 0.3), (0.2, 0.1, 0.3), "zoo", settings)


def note(caplog: pytest.LogCaptureFixture) -> str:
    (record,) = [record for record in caplog.records if record.name == "fastdm"]
    caplog.clear()
    return record.getMessage()


def normalised(images: Tensor, dataset: Dataset) -> Tensor:
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (dataset.mean, dataset.std))
    return (images - mean) / std


# --- tensors ---------------------------------------------------------------------------------------------------------


def test_tensors_in_any_order(dataset: Dataset) -> None:
    loaded = SyntheticSet.from_tensors(IMAGES[ORDER], LABELS[ORDER], dataset=dataset)
    assert torch.equal(loaded.images, IMAGES[ORDER][LABELS[ORDER].argsort(stable=True)])
    assert (loaded.class_names, loaded.mean, loaded.std) == (dataset.class_names, dataset.mean, dataset.std)
    assert (loaded.dataset, loaded.ipc) == ("zoo", IPC)


def test_pixels_in_0_to_1_are_normalised(dataset: Dataset) -> None:
    loaded = SyntheticSet.from_tensors(UNIT, LABELS, dataset=dataset, normalised=False)
    assert torch.equal(loaded.images, normalised(UNIT, dataset))
    bytes_ = (UNIT * 255).round().byte()
    assert torch.equal(
        SyntheticSet.from_tensors(bytes_.numpy(), LABELS.tolist(), dataset=dataset).images,
        normalised(bytes_ / 255, dataset),
    )
    named = SyntheticSet.from_tensors(UNIT, LABELS, dataset="CIFAR10", normalised=False)
    assert named.mean == (0.4914, 0.4822, 0.4465)
    with pytest.raises(FastDMError, match=r"has pixels of -[\d.]+\.\.[\d.]+, though its layout has them in \[0, 1\]"):
        SyntheticSet.from_tensors(IMAGES, LABELS, dataset=dataset, normalised=False)


def test_pixels_that_may_not_be_normalised_are_named(dataset: Dataset, caplog: pytest.LogCaptureFixture) -> None:
    SyntheticSet.from_tensors(UNIT, LABELS, dataset=dataset)
    assert "are taken as normalised; if they are not, load it with normalised=False" in note(caplog)
    SyntheticSet.from_tensors(255 * UNIT, LABELS, dataset=dataset)
    assert "no pixel is below 0" in note(caplog)
    SyntheticSet.from_tensors(IMAGES, LABELS, dataset=dataset)
    assert not caplog.records


def test_images_without_labels_are_sorted(dataset: Dataset, caplog: pytest.LogCaptureFixture) -> None:
    assert torch.equal(SyntheticSet.from_tensors(IMAGES, dataset=dataset).images, IMAGES)
    assert "there are no labels: the images are taken as sorted, 2 of each class" in note(caplog)
    with pytest.raises(FastDMError, match="5 images cannot be divided among 3 classes"):
        SyntheticSet.from_tensors(IMAGES[:5], dataset=dataset)
    with pytest.raises(FastDMError, match="has no labels; load it with its data set"):
        SyntheticSet.from_tensors(IMAGES, dataset="CIFAR10")


@pytest.mark.parametrize(
    ("labels", "text"),
    [
        (LABELS.float(), "floating-point labels taken as whole numbers: 6"),
        (torch.eye(3)[LABELS], "soft labels replaced by the class of the largest: 6"),
        (torch.eye(3).long()[LABELS], "soft labels replaced by the class of the largest: 6"),
        ((torch.eye(3) * 0.2 - 7).double()[LABELS], "soft labels replaced by the class of the largest: 6"),
    ],
    ids=["floats", "soft", "one-hot integers", "logits"],
)
def test_other_labels_are_converted_with_a_note(
    dataset: Dataset, labels: Tensor, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert torch.equal(SyntheticSet.from_tensors(IMAGES[ORDER], labels[ORDER], dataset=dataset).labels, LABELS)
    assert text in note(caplog)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (IMAGES, LABELS + 0.5, "labels that are not whole numbers"),
        (IMAGES, torch.full((6, 3), float("nan")), "labels that are not finite"),
        (IMAGES, LABELS[:5], "6 images and 5 labels"),
        (IMAGES, LABELS + 1, "the label 3, but its data set has 3 classes"),
        (IMAGES, LABELS - 1, "the label -1"),
        (IMAGES, torch.tensor([0, 0, 0, 1, 1, 2]), "classes of 1 and of 3 images"),
        (IMAGES[:, :, :5], LABELS, "3x5x6 images, but data set zoo has 3 classes of 3x6x6"),
        (IMAGES[0], LABELS, r"floating-point \[N, C, H, W\]"),
        (IMAGES / 0, LABELS, "not finite"),
        ("images", LABELS, "its images are not an array of numbers"),
        (None, LABELS, "its images are not an array of numbers"),
        (IMAGES.to("meta"), LABELS, "on the device meta, which holds no values"),
    ],
)
def test_tensors_that_are_no_set(dataset: Dataset, images: Any, labels: Tensor, message: str) -> None:
    with pytest.raises(FastDMError, match=message):
        SyntheticSet.from_tensors(images, labels, dataset=dataset)


# --- files of others -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("old", [False, True], ids=["zip", "before torch 1.6"])
def test_mtt(dataset: Dataset, tmp_path: Path, old: bool, caplog: pytest.LogCaptureFixture) -> None:
    torch.save(IMAGES[ORDER], tmp_path / "images_best.pt", _use_new_zipfile_serialization=not old)
    torch.save(LABELS[ORDER], tmp_path / "labels_best.pt", _use_new_zipfile_serialization=not old)
    loaded = SyntheticSet.load(tmp_path / "images_best.pt", dataset=dataset)
    assert torch.equal(loaded.images, IMAGES[ORDER][LABELS[ORDER].argsort(stable=True)])
    facts = inspect(tmp_path / "images_best.pt")
    assert (facts["kind"], facts["classes"], facts["ipc"]) == ("images of MTT", 3, 2)
    assert not caplog.records
    (tmp_path / "labels_best.pt").unlink()
    assert torch.equal(SyntheticSet.load(tmp_path / "images_best.pt", dataset=dataset).images, IMAGES[ORDER])
    assert "there are no labels" in note(caplog)


@pytest.mark.parametrize("old", [False, True], ids=["zip", "before torch 1.6"])
def test_idc(dataset: Dataset, tmp_path: Path, old: bool) -> None:
    torch.save([UNIT, LABELS], tmp_path / "data.pt", _use_new_zipfile_serialization=not old)
    loaded = SyntheticSet.load(tmp_path / "data.pt", dataset=dataset)
    assert torch.equal(loaded.images, normalised(UNIT, dataset))
    assert inspect(tmp_path / "data.pt")["kind"] == "images and labels of IDC"
    torch.save((IMAGES, LABELS), tmp_path / "data.pt")
    assert torch.equal(SyntheticSet.load(tmp_path / "data.pt", dataset=dataset, normalised=True).images, IMAGES)
    with pytest.raises(FastDMError, match=r"data\.pt has pixels of .* load it with normalised=True"):
        SyntheticSet.load(tmp_path / "data.pt", dataset=dataset)


def test_canvases_of_idc_are_decoded_where_the_partition_is_said(
    dataset: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.save([UNIT, LABELS], tmp_path / "data.pt")
    loaded = SyntheticSet.load(tmp_path / "data.pt", dataset=dataset, partition=2)
    assert (loaded.partition, loaded.expand().ipc) == (2, 4 * IPC)
    assert torch.equal(loaded.images, normalised(UNIT, dataset))
    assert SyntheticSet.load(tmp_path / "data.pt", dataset=dataset, partition=1).partition == 1
    assert not caplog.records
    assert SyntheticSet.load(tmp_path / "data.pt", dataset=dataset).partition == 1
    assert "if they are canvases of f by f" in note(caplog)
    with pytest.raises(FastDMError, match="partition is 4, but images of 6x6 pixels"):
        SyntheticSet.load(tmp_path / "data.pt", dataset=dataset, partition=4)
    tensors = SyntheticSet.from_tensors(UNIT, LABELS, dataset=dataset, normalised=False, partition=2)
    assert (tensors.partition, torch.equal(tensors.images, loaded.images)) == (2, True)


@pytest.mark.parametrize("name", ["own.safetensors", "own.pt"])
def test_what_contradicts_the_file_is_refused(synthetic: SyntheticSet, tmp_path: Path, name: str) -> None:
    synthetic.save(tmp_path / name)
    assert SyntheticSet.load(tmp_path / name, partition=1).partition == 1
    with pytest.raises(FastDMError, match=r"partition is 2, but .* says that its own is 1"):
        SyntheticSet.load(tmp_path / name, partition=2)
    with pytest.raises(FastDMError, match=r"normalised is False, but .* says how its pixels are normalised"):
        SyntheticSet.load(tmp_path / name, normalised=False)


def test_pixels_that_are_not_numbers_are_named_as_such(dataset: Dataset, tmp_path: Path) -> None:
    torch.save([UNIT.where(UNIT > 0.01, torch.nan), LABELS], tmp_path / "data.pt")
    with pytest.raises(FastDMError, match="holds pixels that are not finite numbers"):
        SyntheticSet.load(tmp_path / "data.pt", dataset=dataset)


@pytest.mark.parametrize(("name", "format"), [("a.npz", "idc"), ("a.safetensors", "public"), ("a.pt", "safetensors")])
def test_a_suffix_that_contradicts_the_format_is_refused(
    synthetic: SyntheticSet, tmp_path: Path, name: str, format: Any
) -> None:
    with pytest.raises(FastDMError, match=f"ends in .*, but format '{format}' is that of a"):
        synthetic.save(tmp_path / name, format=format)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("old", [False, True], ids=["zip", "before torch 1.6"])
def test_one_experiment_that_is_not_in_a_list(dataset: Dataset, tmp_path: Path, old: bool) -> None:
    torch.save({"data": [IMAGES, LABELS]}, tmp_path / "a.pt", _use_new_zipfile_serialization=not old)
    (loaded,) = SyntheticSet.load_all(tmp_path / "a.pt", dataset=dataset)
    assert torch.equal(loaded.images, IMAGES)


def test_what_else_a_file_of_others_holds_is_named(
    dataset: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = {"data": [[IMAGES.double(), LABELS.int()]], "accs_all_exps": None, "mean": [0.5], "lr": 0.1}
    torch.save(content, tmp_path / "a.pt")
    loaded = SyntheticSet.load(tmp_path / "a.pt", dataset=dataset)
    assert torch.equal(loaded.images, IMAGES)
    assert loaded.mean == dataset.mean
    assert "entries that are not used: 2 (such as lr)" in note(caplog)


def test_sparse_and_trainable_tensors(dataset: Dataset, tmp_path: Path) -> None:
    for images in (IMAGES.to_sparse(), torch.nn.Parameter(IMAGES)):
        torch.save({"data": [[images, LABELS]]}, tmp_path / "a.pt")
        assert torch.equal(SyntheticSet.load(tmp_path / "a.pt", dataset=dataset).images, IMAGES)


def test_steps_of_continual_learning(dataset: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Each step has some of the classes."""
    steps = [[IMAGES[:4], torch.tensor([2, 2, 0, 0])], [IMAGES[4:], torch.tensor([1, 1])]]
    torch.save({"data": steps}, tmp_path / "cl_res.pt")
    first, second = SyntheticSet.load_all(tmp_path / "cl_res.pt", dataset=dataset)
    assert (first.class_names, first.ipc) == (("0", "2"), 2)
    assert torch.equal(first.images, IMAGES[[2, 3, 0, 1]])
    assert (second.class_names, second.ipc) == (("1",), 2)
    assert "2 of 3 classes are in it; 1 of 3 classes are in it" in note(caplog)


@pytest.mark.parametrize("format", ["mtt", "idc", "public", "safetensors"])
def test_every_layout_is_written_and_read_again(
    format: Any, synthetic: SyntheticSet, tmp_path: Path, dataset: Dataset
) -> None:
    unit = dataclasses.replace(synthetic, images=normalised(UNIT, dataset), mean=dataset.mean, std=dataset.std)
    path = tmp_path / {"mtt": "images_best.pt", "idc": "data.pt"}.get(format, "any.name")
    unit.save(path, format=format)
    loaded = SyntheticSet.load(path, dataset=dataset)
    # Twice the rounding of one product and one sum, of numbers below 4.
    assert (loaded.images - unit.images).abs().max() <= 4 * 2.0**-22
    if format == "mtt":
        assert torch.equal(torch.load(path), unit.images)
        assert torch.equal(torch.load(tmp_path / "labels_best.pt"), LABELS)
    if format == "idc":
        images, labels = torch.load(path)
        assert (images - UNIT).abs().max() <= 2.0**-22
        assert torch.equal(labels, LABELS)


def test_pixels_that_idc_cannot_hold_are_counted(
    synthetic: SyntheticSet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    synthetic.save(tmp_path / "data.pt", format="idc")
    images, _ = torch.load(tmp_path / "data.pt")
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (synthetic.mean, synthetic.std))
    pixels = synthetic.images * std + mean
    count = int(((pixels < 0) | (pixels > 1)).sum())
    assert torch.equal(images, pixels.clamp(0, 1))
    assert f"{count:,} of {pixels.numel():,} pixel values lie outside [0, 1] and are clipped" in note(caplog)


def test_soft_labels_that_a_file_cannot_hold_are_named(
    synthetic: SyntheticSet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    labelled = dataclasses.replace(synthetic, soft_labels=torch.full((CLASSES * IPC, CLASSES), 1 / 3).half())
    labelled.save(tmp_path / "own.safetensors")
    assert not caplog.records
    labelled.save(tmp_path / "own.pt")
    assert "soft labels are left out" in note(caplog)


def test_a_file_of_images_needs_a_name_for_that_of_the_labels(synthetic: SyntheticSet, tmp_path: Path) -> None:
    with pytest.raises(FastDMError, match="must have 'images' in its name"):
        synthetic.save(tmp_path / "best.pt", format="mtt")
    with pytest.raises(FastDMError, match="format is 'zip'"):
        synthetic.save(tmp_path / "best.pt", format="zip")  # type: ignore[arg-type]


# --- our own ---------------------------------------------------------------------------------------------------------


def test_our_pt_says_all_about_itself(synthetic: SyntheticSet, tmp_path: Path, dataset: Dataset) -> None:
    second = dataclasses.replace(synthetic, images=IMAGES + 1, settings={"seed": 4})
    save_public([synthetic, second], tmp_path / "x.pt", {"ConvNet": [0.5]})
    first, loaded = SyntheticSet.load_all(tmp_path / "x.pt")
    assert first.summary() == synthetic.summary()
    assert loaded.summary() == second.summary()
    assert torch.equal(loaded.images, second.images)
    assert dataset_name(tmp_path / "x.pt") == "zoo"
    content = torch.load(tmp_path / "x.pt")
    assert (content["mean"], content["class_names"]) == ([0.5, 0.4, 0.3], ["ape", "bee", "cow"])
    assert inspect(tmp_path / "x.pt")["class_names"] == ["ape", "bee", "cow"]
    assert SyntheticSet.load(tmp_path / "x.pt", dataset=dataset).mean == synthetic.mean
    other = dataclasses.replace(synthetic, mean=(0.0, 0.0, 0.0))
    with pytest.raises(FastDMError, match="the sets of one file must have one mean"):
        save_public([synthetic, other], tmp_path / "x.pt")


@pytest.fixture
def small() -> SyntheticSet:
    """A set in whose files every byte can be damaged."""
    return SyntheticSet(torch.arange(4.0).view(1, 1, 2, 2), ("ape",), (0.5,), (0.2,), "zoo", {"network": "ConvNet"})


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_disk_that_fills_at_any_byte_leaves_the_set_that_was_there(
    small: SyntheticSet, tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"a{suffix}"
    small.save(path)
    size = path.stat().st_size
    other = dataclasses.replace(small, images=small.images + 1)
    other.save(path)
    before = path.read_bytes()
    for fits in range(size):
        with files_of_at_most(fits), pytest.raises(FastDMError, match="cannot be written"):
            small.save(path)
        assert path.read_bytes() == before
        assert list(tmp_path.iterdir()) == [path]
    with files_of_at_most(size):
        small.save(path)
    assert torch.equal(SyntheticSet.load(path).images, small.images)


def about(path: Path) -> dict[str, Any]:
    with safe_open(path, "pt") as file:
        return dict(file.metadata())


def test_files_with_the_checksum_of_the_images_alone_still_open(synthetic: SyntheticSet, tmp_path: Path) -> None:
    path = tmp_path / "old.safetensors"
    synthetic.save(path)
    metadata = about(path)
    del metadata["checksum"]
    save_file({"images": IMAGES}, path, metadata)
    assert SyntheticSet.load(path).summary() == synthetic.summary()
    save_file({"images": IMAGES}, path, metadata | {"chdcksum": "0"})
    with pytest.raises(FastDMError, match="it must hold the tensor images and the metadata"):
        SyntheticSet.load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"std": [0, 0.1, 0.1]}, "std is 0 in a channel; it must be above 0"),
        ({"std": [-1, 0.1, 0.1]}, "it must be above 0"),
        ({"mean": [True, 0.1, 0.1]}, "mean and std must have 3 values.*'True' is not a number"),
        ({"mean": ["HUGE", 0.1, 0.1]}, "inf is not a finite number"),
        ({"mean": ["LONG", 0.1, 0.1]}, "a number of too many digits"),
        ({"mean": [float("nan"), 0.1, 0.1]}, "nan is not a finite number"),
        ({"std": [1e-320, 0.1, 0.1]}, "it must be above 0"),
        ({"mean": {"a": 1}}, "its mean must be a list"),
        ({"settings": {"strategy": ["x"]}}, r"its setting strategy is \['x'\]; it must be a text"),
        ({"settings": {"network": 5}}, "its setting network is 5; it must be a text"),
        ({"settings": [1]}, "settings values by name"),
        ({"class_names": ["a", "b", 3]}, "class names .* must be texts"),
        ({"class_names": []}, "cannot be divided evenly"),
        ({"version": 1}, "its version must be a text"),
        ({"settings": "NESTED"}, "nested too deeply"),
    ],
)
def test_every_value_from_a_file_is_checked(
    change: dict[str, Any], message: str, synthetic: SyntheticSet, tmp_path: Path
) -> None:
    path = tmp_path / "bad.safetensors"
    synthetic.save(path)
    text = json.dumps(json.loads(about(path)["about"]) | change)
    text = text.replace('"HUGE"', "1" + "0" * 400).replace('"LONG"', "9" * 5000)
    text = text.replace('"NESTED"', "[" * 100_000 + "]" * 100_000)
    metadata = {"format": "fastdm-synthetic-1", "about": text, "crc32": str(crc32(IMAGES))}
    save_file({"images": IMAGES}, path, metadata)
    with pytest.raises(FastDMError, match=rf"bad\.safetensors is not a condensed set, or is damaged: .*{message}"):
        SyntheticSet.load(path)
    with pytest.raises(FastDMError, match=r"bad\.safetensors"):
        inspect(path)


def test_a_set_that_cannot_be_used_is_never_made(synthetic: SyntheticSet) -> None:
    with pytest.raises(FastDMError, match="std is 0 in a channel"):
        dataclasses.replace(synthetic, std=(0.2, 0.0, 0.2))
    made = dataclasses.replace(synthetic, mean=np.float32([0.5, 0.25, 0.5]), std=[1, 2, 3])  # type: ignore[arg-type]
    assert (made.mean, made.std) == ((0.5, 0.25, 0.5), (1.0, 2.0, 3.0))


# --- files -----------------------------------------------------------------------------------------------------------


def test_a_grid_is_written_in_the_format_of_its_suffix(synthetic: SyntheticSet, tmp_path: Path) -> None:
    for name, format in (("a.png", "PNG"), ("a.jpg", "JPEG"), ("a.JPEG", "JPEG")):
        synthetic.save_grid(tmp_path / name, zoom=8)
        with Image.open(tmp_path / name) as image:
            assert image.format == format
    png, jpeg = (np.asarray(Image.open(tmp_path / name), dtype=float) for name in ("a.png", "a.jpg"))
    assert np.abs(png - jpeg).mean() < 8
    for name in ("a.gif", "a"):
        with pytest.raises(FastDMError, match=rf"{name} must end in \.png, \.jpg, \.jpeg"):
            synthetic.save_grid(tmp_path / name)


def test_what_is_saved_may_be_read_by_others(synthetic: SyntheticSet, tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        for name in ("a.safetensors", "a.pt", "images.pt"):
            synthetic.save(tmp_path / name)
        synthetic.save_grid(tmp_path / "a.png")
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o644}


def test_only_regular_files_are_read_and_written(synthetic: SyntheticSet, tmp_path: Path) -> None:
    for name in ("pipe.pt", "pipe.safetensors"):
        os.mkfifo(tmp_path / name)
        for read in (SyntheticSet.load, inspect, dataset_name):
            with pytest.raises(FastDMError, match=rf"{name} is a named pipe; it must be a regular file"):
                read(tmp_path / name)
        with pytest.raises(FastDMError, match=rf"{name} cannot be written: it is not a regular file"):
            synthetic.save(tmp_path / name)
        assert stat.S_ISFIFO((tmp_path / name).stat().st_mode)
    (tmp_path / "link.pt").symlink_to("target.pt")
    synthetic.save(tmp_path / "link.pt")
    assert (tmp_path / "link.pt").is_symlink()
    assert torch.equal(SyntheticSet.load(tmp_path / "target.pt").images, IMAGES)


def test_black_and_white_are_not_taken_for_pixels_beyond(
    synthetic: SyntheticSet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """They are normalised and back: a fused multiply and add, and its inverse, in float32."""
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (synthetic.mean, synthetic.std))
    extremes = torch.arange(synthetic.images.numel()).reshape(synthetic.images.shape) % 2
    clamped = dataclasses.replace(synthetic, images=((extremes - mean) / std).nextafter(torch.tensor(-100.0)))
    assert ((clamped.images * std + mean) < 0).any()
    clamped.save(tmp_path / "data.pt", format="idc")
    assert "lie outside" not in caplog.text
