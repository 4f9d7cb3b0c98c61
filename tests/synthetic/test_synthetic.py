import dataclasses
import json
import re
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.utils.data import DataLoader

import fastdm
from fastdm.data import open_dataset
from fastdm.errors import FastDMError
from fastdm.synthetic.public_file import read_public
from fastdm.synthetic.set_file import write_set
from fastdm.synthetic.synthetic_set import SyntheticSet, dataset_name, save_public


@pytest.fixture
def synthetic() -> SyntheticSet:
    images = torch.randn(6, 3, 5, 4, generator=torch.Generator().manual_seed(0))
    return SyntheticSet(
        images, ("ape", "bee"), (0.5, 0.4, 0.3), (0.2, 0.1, 0.3), "zoo", {"ipc": 3, "network": "ConvNet", "lr": None}
    )


def test_rows_are_class_sorted(synthetic: SyntheticSet) -> None:
    assert (synthetic.num_classes, synthetic.ipc) == (2, 3)
    assert synthetic.labels.tolist() == [0, 0, 0, 1, 1, 1]
    images, labels = next(iter(DataLoader(synthetic.as_dataset(), batch_size=6)))
    assert torch.equal(images, synthetic.images)
    assert torch.equal(labels, synthetic.labels)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": torch.zeros(5, 3, 5, 4)}, "5 synthetic images cannot be divided evenly among 2 classes"),
        ({"images": torch.zeros(6, 3, 5)}, "must be float32"),
        ({"images": torch.zeros(6, 3, 5, 4, dtype=torch.float64)}, "must be float32"),
        ({"images": torch.zeros(6, 1, 5, 4)}, "mean and std must have 1 values"),
    ],
)
def test_what_is_no_set(synthetic: SyntheticSet, change: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(FastDMError, match=message):
        dataclasses.replace(synthetic, **change)


def test_safetensors_keep_everything(synthetic: SyntheticSet, tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "set.safetensors"
    synthetic.save(path)
    loaded = SyntheticSet.load(path)
    assert torch.equal(loaded.images, synthetic.images)
    assert loaded.summary() == synthetic.summary()
    assert loaded.version == fastdm.__version__
    assert [file.name for file in path.parent.iterdir()] == ["set.safetensors"]


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "text"])
def test_a_damaged_file_is_refused_by_name(synthetic: SyntheticSet, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "set.safetensors"
    synthetic.save(path)
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes({"truncated": content[:-8], "flipped": content, "empty": b"", "text": b"no set at all"}[damage])
    with pytest.raises(FastDMError, match=r"set.safetensors is .*damaged"):
        SyntheticSet.load(path)


def test_other_files_are_refused_by_name(tmp_path: Path) -> None:
    save_file({"images": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(FastDMError, match=r"other.safetensors is not a condensed set.* not of this version"):
        SyntheticSet.load(tmp_path / "other.safetensors")
    with pytest.raises(FastDMError, match=r"absent cannot be read: No such file"):
        SyntheticSet.load(tmp_path / "absent")


def test_pixels_that_are_not_finite_are_refused(synthetic: SyntheticSet, tmp_path: Path) -> None:
    synthetic.images[3, 1] = float("nan")
    write_set(tmp_path / "set.safetensors", synthetic.images, synthetic._about())  # as the first versions did
    with pytest.raises(FastDMError, match=r"set.safetensors holds pixels that are not finite"):
        SyntheticSet.load(tmp_path / "set.safetensors")


ABOUT = {
    "class_names": ["ape", "bee"],
    "mean": [0.5],
    "std": [0.2],
    "dataset": "zoo",
    "settings": {},
    "version": "0.1.0",
}


@pytest.mark.parametrize(
    ("change", "images", "message"),
    [
        ({}, torch.zeros(4, 1, 2, 2), ""),
        ({"crc32": None}, torch.zeros(4, 1, 2, 2), "checksum"),
        ({"about": None}, torch.zeros(4, 1, 2, 2), "it must state class_names, .*but states nothing"),
        ({"about": "{"}, torch.zeros(4, 1, 2, 2), "property name"),
        ({"about": "[]"}, torch.zeros(4, 1, 2, 2), "is not a JSON object"),
        ({"about": {**ABOUT, "soft_labels": 1}}, torch.zeros(4, 1, 2, 2), "but states .*soft_labels"),
        ({"about": {**ABOUT, "class_names": 2}}, torch.zeros(4, 1, 2, 2), "its class_names must be a list"),
        ({"about": {**ABOUT, "mean": ["dark"]}}, torch.zeros(4, 1, 2, 2), "mean and std must have 1 values"),
        ({"about": {**ABOUT, "settings": None}}, torch.zeros(4, 1, 2, 2), "settings values by name"),
        ({}, torch.zeros(3, 1, 2, 2), "3 synthetic images cannot be divided evenly"),
        ({}, torch.zeros(4, 1, 2, 2, dtype=torch.float64), "must be float32"),
        ({}, torch.zeros(4, 1, 2, 2, dtype=torch.bfloat16), "BFloat16"),
    ],
)
def test_safetensors_that_are_no_set(
    change: dict[str, Any], images: torch.Tensor, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "bad.safetensors"
    checksum = "0" if images.dtype == torch.bfloat16 else str(zlib.crc32(images.numpy().data))
    metadata = {"format": "fastdm-synthetic-1", "about": ABOUT, "crc32": checksum, **change}
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items() if value}
    save_file({"images": images}, path, texts)
    if not message:  # the one that is all right
        assert SyntheticSet.load(path).class_names == ("ape", "bee")
        return
    with pytest.raises(FastDMError, match=rf"bad.safetensors is not a condensed set, or is damaged: .*{message}"):
        SyntheticSet.load(path)


def test_a_failed_save_keeps_the_file_before(synthetic: SyntheticSet, tmp_path: Path) -> None:
    path = tmp_path / "set.safetensors"
    synthetic.save(path)
    before = path.read_bytes()
    spoilt = dataclasses.replace(synthetic, settings={"unserialisable": object()})
    with pytest.raises(FastDMError, match="object is not JSON serializable"):
        spoilt.save(path)
    assert path.read_bytes() == before
    (tmp_path / "file").touch()
    with pytest.raises(FastDMError, match="cannot be written"):
        synthetic.save(tmp_path / "file" / "set.safetensors")


def test_the_suffix_says_in_which_format(synthetic: SyntheticSet, tmp_path: Path) -> None:
    synthetic.save(tmp_path / "res_DM_CIFAR10_ConvNet_3ipc.pt")
    content = torch.load(tmp_path / "res_DM_CIFAR10_ConvNet_3ipc.pt", weights_only=True)
    ((images, labels),) = content["data"]
    assert torch.equal(images, synthetic.images)
    assert torch.equal(labels, synthetic.labels)
    assert content["accs_all_exps"] == {}
    for name in ("set", "set.npz", "set.PT"):
        with pytest.raises(FastDMError, match=rf"{name} must end in .safetensors, or in .pt"):
            synthetic.save(tmp_path / name)
    assert len([*tmp_path.iterdir()]) == 1


def test_the_public_codes_format(synthetic: SyntheticSet, tmp_path: Path) -> None:
    path = tmp_path / "res_DM_CIFAR10_ConvNetD4_3ipc.pt"
    second = dataclasses.replace(synthetic, images=synthetic.images + 1)
    save_public([synthetic, second], path, {"ConvNet": [0.5, 0.25]})
    content = torch.load(path, weights_only=True)
    assert content["accs_all_exps"] == {"ConvNet": [0.5, 0.25]}
    (images, labels), _ = content["data"]
    assert torch.equal(images, synthetic.images)
    assert torch.equal(labels, synthetic.labels)
    for experiment in (2, -1):
        with pytest.raises(FastDMError, match=f"holds 2 sets, counted from 0; there is no set {experiment}"):
            SyntheticSet.load(path, experiment=experiment)
    loaded = SyntheticSet.load(path, experiment=1)
    assert torch.equal(loaded.images, second.images)
    assert loaded.summary() == second.summary()  # from further keys, which the public code does not look at
    assert [bool(torch.equal(both.images, loaded.images)) for both in SyntheticSet.load_all(path)] == [False, True]


@pytest.mark.parametrize(
    ("name", "dataset", "network"),
    [
        ("res_DM_CIFAR10_ConvNet_1ipc", "CIFAR10", "ConvNet"),
        ("res_DM_CIFAR10_ResNet18_AP_1ipc", "CIFAR10", "ResNet18_AP"),
        ("res_DC_my_own_set_ResNet18BN_AP_10ipc", "my_own_set", "ResNet18BN_AP"),
        ("res_DM_CIFAR10_ViT_50ipc", "CIFAR10", "ViT"),  # not one of ours
    ],
)
def test_the_name_of_a_public_file(
    name: str, dataset: str, network: str, synthetic: SyntheticSet, tmp_path: Path
) -> None:
    path = tmp_path / f"{name}.pt"
    torch.save({"data": [[synthetic.images, synthetic.labels]], "accs_all_exps": {}}, path)
    assert dataset_name(path) == dataset
    zoo = open_dataset((np.zeros((2, 5, 4, 3), np.uint8), [0, 1]), name="zoo")
    assert SyntheticSet.load(path, dataset=zoo).settings == {"network": network}


def test_what_a_file_stands_for(synthetic: SyntheticSet, tmp_path: Path) -> None:
    synthetic.save(tmp_path / "set.safetensors")
    assert dataset_name(tmp_path / "set.safetensors") == "zoo"
    synthetic.save(tmp_path / "ours.pt")
    assert dataset_name(tmp_path / "ours.pt") == "zoo"
    torch.save({"data": [[synthetic.images, synthetic.labels]]}, tmp_path / "mine.pt")
    with pytest.raises(FastDMError, match=r"mine.pt does not say which data set it was condensed from"):
        dataset_name(tmp_path / "mine.pt")
    three = open_dataset((np.zeros((3, 5, 4, 3), np.uint8), [0, 1, 2]), name="three")
    message = r"ours.pt has 2 classes of 3x5x4 images, but data set three has 3 classes of 3x5x4 images"
    with pytest.raises(FastDMError, match=message):
        SyntheticSet.load(tmp_path / "ours.pt", dataset=three)
    one = open_dataset((np.zeros((1, 5, 4, 3), np.uint8), [0]), name="one")
    with pytest.raises(FastDMError, match=r"mine.pt holds the label 1, but its data set has 1 classes"):
        SyntheticSet.load(tmp_path / "mine.pt", dataset=one)
    smaller = open_dataset((np.zeros((2, 4, 4, 3), np.uint8), [0, 1]), name="smaller")
    with pytest.raises(FastDMError, match=r"mine.pt has .* 3x5x4 images, but data set smaller has .* 3x4x4 images"):
        SyntheticSet.load(tmp_path / "mine.pt", dataset=smaller)


def test_a_public_file_takes_what_it_lacks_from_the_dataset(synthetic: SyntheticSet, tmp_path: Path) -> None:
    path = tmp_path / "mine.pt"
    order = torch.tensor([3, 0, 4, 1, 5, 2])  # written by others, not sorted
    torch.save({"data": [[synthetic.images[order], synthetic.labels[order]]], "accs_all_exps": {}}, path)
    with pytest.raises(FastDMError, match=r"mine.pt does not say how its pixels are normalised"):
        SyntheticSet.load(path)
    dataset = open_dataset((np.zeros((2, 5, 4, 3), np.uint8), [0, 1]), name="zoo")
    loaded = SyntheticSet.load(path, dataset=dataset)
    assert torch.equal(loaded.images, synthetic.images)
    assert (loaded.dataset, loaded.mean) == ("zoo", dataset.mean)


ACCURACIES = {
    "numbers": [np.float64(0.25), np.float64(0.5)],
    "numbers of 32 bits": [np.float32(0.25), np.float32(0.5)],
    "an array": np.array([0.25, 0.5], np.float32),
    "arrays": [np.array([0.25]), np.array(0.5)],
    "a big-endian array": np.array([0.25, 0.5], ">f8"),
}


@pytest.mark.parametrize("form", ACCURACIES)
@pytest.mark.parametrize("core", ["numpy._core", "numpy.core"], ids=["NumPy 2", "NumPy 1"])
def test_accuracies_of_the_public_code_are_numpy_numbers(
    core: str, form: str, synthetic: SyntheticSet, tmp_path: Path
) -> None:
    written, path = tmp_path / "written.pt", tmp_path / "res.pt"
    accuracies = {"ConvNet": ACCURACIES[form]}
    torch.save({"data": [[synthetic.images, synthetic.labels]], "accs_all_exps": accuracies}, written)
    with zipfile.ZipFile(written) as before, zipfile.ZipFile(path, "w") as after:
        for name in before.namelist():
            content = re.sub(rb"numpy\._?core", core.encode(), before.read(name))
            after.writestr(name, content)
    assert f"{core}.multiarray".encode() in path.read_bytes()
    (read,) = read_public(path).accuracies.values()
    assert read == [0.25, 0.5]
    assert {type(accuracy) for accuracy in read} == {float}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"weights": torch.zeros(1)}, 'holds no {"data"'),
        ({"data": []}, "holds no experiment"),
        ({"data": [[torch.zeros(3, 3, 4, 4), torch.tensor([0, 0, 1])]]}, "holds classes of 1 and of 2 images"),
        ({"data": [[torch.zeros(2, 3, 4, 4), torch.tensor([0.0, 0.5])]]}, "labels .*whole numbers: torch.float32"),
        ({"data": [[torch.zeros(2, 3, 4, 4), torch.tensor([0.0, float("inf")])]]}, "labels .*whole numbers"),
        ({"data": [[torch.zeros(2, 3, 4, 4), torch.tensor([True, False])]]}, "labels .*: torch.bool"),
        ({"data": [[torch.zeros(2, 3, 4, 4), torch.tensor([[0], [1]])]]}, r"labels .*: torch.int64 \[2, 1\]"),
        ({"data": [[torch.zeros(2, 3, 4, 4), [0, 1]]]}, "labels .*: list"),
        ({"data": [[torch.zeros(2, 3, 4, 4), torch.tensor([-1, 0])]]}, "label -1; labels count from 0"),
        ({"data": [[torch.zeros(1, 3, 4, 4), torch.tensor([0, 1])]]}, "1 images and 2 labels"),
        ({"data": [[torch.zeros(0, 3, 4, 4), torch.tensor([0])[:0]]]}, "holds 0 images"),
        ({"data": [[torch.zeros(2, 3, 4, 4).byte(), torch.tensor([0, 1])]]}, "images .*: torch.uint8"),
        ({"data": [["images", torch.tensor([0, 1])]]}, "images .*: str"),
    ],
)
def test_bad_public_files(content: object, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "res_DM_CIFAR10_ConvNet_1ipc.pt")
    with pytest.raises(FastDMError, match=f"res_DM_CIFAR10_ConvNet_1ipc.pt .*{message}"):
        SyntheticSet.load(tmp_path / "res_DM_CIFAR10_ConvNet_1ipc.pt")


def test_a_public_file_that_runs_code_is_refused(tmp_path: Path) -> None:
    torch.save({"data": [Path("x")]}, tmp_path / "evil.pt")
    with pytest.raises(FastDMError, match=r"evil.pt is not a .pt file, or is damaged, or contains more than [a-z ]+$"):
        SyntheticSet.load(tmp_path / "evil.pt")


@pytest.mark.parametrize("channels", [1, 3])
def test_the_grid_is_torchvisions(channels: int, synthetic: SyntheticSet, tmp_path: Path) -> None:
    from torchvision.utils import save_image

    chosen = dataclasses.replace(
        synthetic, images=synthetic.images[:, :channels], mean=synthetic.mean[:channels], std=synthetic.std[:channels]
    )
    chosen.save_grid(tmp_path / "grid.png")
    mean, std = (torch.tensor(values)[:, None, None] for values in (chosen.mean, chosen.std))
    save_image((chosen.images * std + mean).clamp(0, 1), tmp_path / "theirs.png", nrow=3)
    ours, theirs = (np.asarray(Image.open(tmp_path / name).convert("RGB")) for name in ("grid.png", "theirs.png"))
    assert np.array_equal(ours, theirs)


def test_the_grid_is_zoomed(synthetic: SyntheticSet, tmp_path: Path) -> None:
    synthetic.save_grid(tmp_path / "one.png")
    synthetic.save_grid(tmp_path / "three.png", zoom=3)
    one, three = (np.asarray(Image.open(tmp_path / name)) for name in ("one.png", "three.png"))
    assert np.array_equal(one.repeat(3, 0).repeat(3, 1), three)
    for zoom in (0, -1):
        with pytest.raises(FastDMError, match=f"zoom is {zoom}; it must be a whole number of at least 1"):
            synthetic.save_grid(tmp_path / "none.png", zoom=zoom)
