"""PyTorch's datasets and arrays as people have them."""

import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, IterableDataset, Subset, TensorDataset
from torchvision import datasets, transforms, tv_tensors

import fastdm
from fastdm.data import Dataset, open_dataset
from fastdm.data.packing import pack
from fastdm.errors import FastDMError

RNG = np.random.default_rng(7)
PIXELS = RNG.integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
LABELS = [1, 0, 1, 0, 1, 0]
SORTED = torch.from_numpy(PIXELS[[1, 3, 5, 0, 2, 4]]).permute(0, 3, 1, 2)


class Listed:
    """A map-style dataset that is not a subclass of PyTorch's."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __getitem__(self, number: int) -> Any:
        return self.items[number]

    def __len__(self) -> int:
        return len(self.items)


def folder(root: Path, names: str = "ab") -> Path:
    for name in names:
        for number in range(2):
            path = root / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(RNG.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    return root


def note(caplog: pytest.LogCaptureFixture) -> str:
    (record,) = [record for record in caplog.records if record.name == "fastdm"]
    caplog.clear()
    return record.getMessage()


# --- PyTorch's datasets ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transform", [None, transforms.ToTensor(), transforms.PILToTensor()])
def test_a_pair_of_image_folders(tmp_path: Path, transform: Any) -> None:
    train, test = folder(tmp_path / "pets" / "train"), folder(tmp_path / "pets" / "test")
    opened = open_dataset((datasets.ImageFolder(str(train), transform), datasets.ImageFolder(str(test), transform)))
    expected = open_dataset(tmp_path / "pets")
    assert (opened.name, opened.class_names) == ("pets", ("a", "b"))
    assert opened.test is not None
    assert expected.test is not None
    assert torch.equal(opened.train.images, expected.train.images)
    assert torch.equal(opened.test.images, expected.test.images)
    assert (opened.mean, opened.std) == (expected.mean, expected.std)


def test_image_folders_of_other_classes_are_refused(tmp_path: Path) -> None:
    """Label 1 is b in one and c in the other."""
    parts = tuple(datasets.ImageFolder(str(folder(tmp_path / names, names))) for names in ("abc", "ac"))
    with pytest.raises(FastDMError, match=r"training part has the classes a, b, c \(3\), the test part a, c \(2\)"):
        open_dataset(parts)  # type: ignore[arg-type]


@pytest.mark.parametrize("labels", [torch.tensor(LABELS), torch.tensor(LABELS, dtype=torch.uint8)])
def test_a_tensor_dataset(labels: Tensor) -> None:
    images = torch.from_numpy(PIXELS).permute(0, 3, 1, 2)
    for pixels in (images, images / 255):
        opened = open_dataset(TensorDataset(pixels, labels))
        assert torch.equal(opened.train.images, SORTED)
        assert opened.test is None
        assert opened.name == "TensorDataset"


def cifar10(tmp_path: Path) -> datasets.CIFAR10:
    """A CIFAR10 object without its download."""
    data = datasets.CIFAR10.__new__(datasets.CIFAR10)
    data.data = RNG.integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
    data.targets = [number % 10 for number in range(20)]
    data.classes = [f"class {number}" for number in range(10)]
    data.transform = data.target_transform = None
    return data


def test_a_cifar10_object_is_cifar10(tmp_path: Path) -> None:
    data = cifar10(tmp_path)
    opened = open_dataset((data, Subset(data, range(10))))
    assert (opened.name, opened.mean) == ("CIFAR10", (0.4914, 0.4822, 0.4465))
    assert opened.class_names[3] == "class 3"
    assert np.array_equal(opened.train.images[6].numpy(), data.data[3].transpose(2, 0, 1))
    assert opened.test is not None
    assert len(opened.test) == 10
    assert open_dataset(ConcatDataset([data, data])).train.class_sizes.tolist() == [4] * 10


def test_grey_pictures_stay_grey_and_others_are_named(caplog: pytest.LogCaptureFixture) -> None:
    grey = [(Image.fromarray(PIXELS[i, ..., 0]), LABELS[i]) for i in range(6)]
    assert torch.equal(open_dataset(Listed(grey)).train.images, SORTED[:, :1])  # type: ignore[arg-type]
    assert not caplog.records
    transparent = [(Image.fromarray(PIXELS[i]).convert("RGBA"), LABELS[i]) for i in range(6)]
    transparent[0][0].putpixel((0, 0), (*PIXELS[0, 0, 0].tolist(), 7))
    assert torch.equal(open_dataset(Listed(transparent)).train.images, SORTED)  # type: ignore[arg-type]
    assert "images whose transparency is dropped: 1 (such as data set Listed, training part, item 0)" in note(caplog)


def test_items_of_many_sizes_are_brought_to_one(tmp_path: Path) -> None:
    items = [(Image.fromarray(PIXELS[i, : 4 + i]), LABELS[i]) for i in range(4)]
    with pytest.raises(FastDMError, match="item 1 is 3x5x8, but the first is 3x4x8; bring all to one shape"):
        open_dataset(Listed(items))  # type: ignore[arg-type]
    assert open_dataset(Listed(items), image_size=4).image_shape == (3, 4, 4)  # type: ignore[arg-type]
    packed = pack(Listed(items), tmp_path / "a.fdm", size=5)
    assert packed.summary()["shape"] == [3, 5, 5]


PICTURE = Image.fromarray(PIXELS[0])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (Listed([(torch.full((3, 4, 4), -1.5), 0)]), r"pixels of -1\.5\.\.-1\.5; .* take Normalize out"),
        (Listed([(PICTURE, 0.5)]), r"item 0: its label is 0\.5; it must be a whole number"),
        (Listed([(PICTURE, True)]), "its label is True"),
        (Listed([(PICTURE, torch.tensor([0.0, 1.0]))]), "its label is tensor"),
        (Listed([(PICTURE, -1)]), "its label is -1"),
        (Listed([PICTURE]), r"item 0 is a Image; it must be \(image, label\)"),
        (Listed([{"image": PICTURE}]), "item 0 is a dictionary of image; it must be"),
        (Listed([("a.png", 0)]), "has a str for an image"),
        (Listed([(torch.zeros(1, 2, 3, 4), 0)]), r"shape \[1, 2, 3, 4\]"),
        (Listed([(Image.new("I", (4, 4)), 0)]), "its mode I"),
        (Listed([(torch.full((3, 4, 4), torch.nan), 0)]), "item 0: some pixels are NaN"),
        (Listed([(torch.zeros(5, 4, 4), 0)]), r"item 0: images of shape \(1, 5, 4, 4\)"),
        ((Listed([(PICTURE, 0)]), PIXELS), "2 objects, some of them datasets of PyTorch, are not a data set"),
        ((Listed([]),) * 3, "3 objects, some of them"),
        (b"folder", "not bytes"),
        (Listed([]), "there is no image"),
        ((Listed([(PICTURE, 0)]), Listed([])), "test part: there is no image"),
        (Listed([(PICTURE, 0), (PICTURE, 2)]), "2 training images cannot belong to 3 classes"),
        (DataLoader(TensorDataset(torch.zeros(2, 1, 4, 4), torch.tensor([0, 1]))), "not DataLoader"),
    ],
)
def test_datasets_that_cannot_be_used(source: Any, message: str) -> None:
    with pytest.raises(FastDMError, match=message):
        open_dataset(source)


def test_an_iterable_dataset_and_a_failing_one_are_refused() -> None:
    class Endless(IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            return iter(())

    class Failing(Listed):
        def __getitem__(self, number: int) -> Any:
            raise KeyError("image_path")

    with pytest.raises(FastDMError, match="Endless cannot be read by number; it must be a map-style dataset"):
        open_dataset(Endless())
    with pytest.raises(FastDMError, match="item 0 cannot be read: KeyError: 'image_path'"):
        open_dataset(Failing([0]))  # type: ignore[arg-type]


def test_condensing_a_dataset_of_pytorch() -> None:
    images = torch.from_numpy(np.repeat(PIXELS, 3, 0)).permute(0, 3, 1, 2)
    data = TensorDataset(images, torch.arange(18) % 2)
    options: dict[str, Any] = {"ipc": 1, "iterations": 2, "batch_real": 4, "network": "ConvNetD1", "device": "cpu"}
    first = fastdm.condense(data, **options)
    assert torch.equal(first.images, fastdm.condense((images, torch.arange(18) % 2), **options).images)


# --- arrays ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [">", "<"])
def test_arrays_of_any_byte_order(order: str) -> None:
    images = (PIXELS / 255).astype(f"{order}f4")
    opened = open_dataset((images, np.array(LABELS, f"{order}i8")))
    assert torch.equal(opened.train.images, SORTED)
    assert torch.equal(open_dataset((PIXELS, np.array(LABELS, f"{order}u2"))).train.images, SORTED)


def test_lists_of_pictures_and_of_tensors() -> None:
    pictures = [Image.fromarray(pixels) for pixels in PIXELS]
    assert torch.equal(open_dataset((pictures, LABELS)).train.images, SORTED)  # type: ignore[arg-type]
    tensors = [torch.from_numpy(pixels).permute(2, 0, 1) for pixels in PIXELS]
    labels = [torch.tensor(label) for label in LABELS]
    assert torch.equal(open_dataset((tensors, labels)).train.images, SORTED)  # type: ignore[arg-type]


def medmnist(path: Path, **more: np.ndarray) -> Path:
    labels = np.array(LABELS, np.uint8)[:, None]
    arrays = {f"{part}_images": PIXELS for part in ("train", "val", "test")}
    arrays |= {f"{part}_labels": labels for part in ("train", "val", "test")}
    np.savez(path, **(arrays | more))
    return path


def test_medmnist(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    opened = open_dataset(medmnist(tmp_path / "pathmnist.npz"))
    assert opened.name == "pathmnist"
    assert torch.equal(opened.train.images, SORTED)
    assert opened.test is not None
    assert torch.equal(opened.test.images, SORTED)
    assert "arrays that are not used: 2 (such as val_images)" in note(caplog)
    several = np.zeros((6, 14), np.uint8)
    with pytest.raises(FastDMError, match=r"labels must be integers of shape \[N\], not torch.uint8 \[6, 14\]"):
        open_dataset(medmnist(tmp_path / "chestmnist.npz", train_labels=several))


def test_an_npz_of_other_names_says_which_it_holds(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", data=PIXELS, labels=LABELS)
    with pytest.raises(FastDMError, match=r"must hold x_train and y_train.*; it holds data, labels"):
        open_dataset(tmp_path / "a.npz")


def test_an_npz_of_objects_or_larger_than_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez(tmp_path / "a.npz", x_train=np.array([None, "a"], object), y_train=LABELS)
    with pytest.raises(FastDMError, match=r"a\.npz is not a readable \.npz file: .*allow_pickle"):
        open_dataset(tmp_path / "a.npz")
    np.savez_compressed(tmp_path / "b.npz", x_train=np.zeros((1000, 8, 8), np.uint8), y_train=np.zeros(1000, int))
    monkeypatch.setattr("fastdm.data.arrays.free_memory", lambda: 50_000)
    with pytest.raises(FastDMError, match=r"b\.npz is not a readable .*more than the memory that is free"):
        open_dataset(tmp_path / "b.npz")


@pytest.mark.parametrize("old", [False, True], ids=["zip", "before torch 1.6"])
def test_pt_files_of_any_torch(tmp_path: Path, old: bool) -> None:
    images, labels = torch.from_numpy(PIXELS).permute(0, 3, 1, 2), torch.tensor(LABELS)
    named = {"classes": ["a", "b"], "images_train": images, "labels_train": labels}
    named |= {"images_val": images, "labels_val": labels}
    contents: list[Any] = [named, (images, labels), [images, labels, images, labels]]
    for content in contents:
        torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=not old)
        assert torch.equal(open_dataset(tmp_path / "a.pt").train.images, SORTED)
    torch.save(named | {"classes": 7}, tmp_path / "a.pt")
    with pytest.raises(FastDMError, match=r"a\.pt is not a data set"):
        open_dataset(tmp_path / "a.pt")


def test_tensors_that_are_sparse_or_hold_nothing() -> None:
    images = torch.from_numpy(PIXELS).permute(0, 3, 1, 2) / 255
    assert torch.equal(open_dataset((images.to_sparse(), LABELS)).train.images, SORTED)
    with pytest.raises(FastDMError, match="a tensor on the device meta, which holds no values"):
        open_dataset((images.to("meta"), LABELS))


def test_a_length_that_memory_does_not_hold_or_that_is_none() -> None:
    class Endless(Listed):
        def __len__(self) -> int:
            return 10**12

    class Negative(Listed):
        def __len__(self) -> int:
            return -3

    with pytest.raises(FastDMError, match=r"1000000000000 images of 3x8x8 take 175 TiB of memory"):
        open_dataset(Endless([(PICTURE, 0)]))  # type: ignore[arg-type]
    with pytest.raises(FastDMError, match="its length is not known"):
        open_dataset(Negative([]))  # type: ignore[arg-type]


# --- paths -----------------------------------------------------------------------------------------------------------


def test_a_tilde_is_the_home_folder_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    folder(home / "set")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path)
    opened: Dataset = open_dataset("~/set")
    pack("~/set", "~/set.fdm", size=8)
    assert torch.equal(open_dataset(Path("~/set.fdm")).train.images, opened.train.images)
    torch.save({}, home / "tinyimagenet.pt")
    with pytest.raises(FastDMError, match=r"home/tinyimagenet\.pt is not a data set"):
        open_dataset("TinyImageNet", data_path="~")
    synthetic = fastdm.random_selection(opened, 1)
    for name in ("~/a.pt", "~/a.safetensors"):
        synthetic.save(name)
        assert torch.equal(fastdm.SyntheticSet.load(name).images, synthetic.images)
    synthetic.save_grid("~/a.png")
    with pytest.raises(FastDMError, match=r"~nobody-of-this-name/set.: there is no such file or folder"):
        open_dataset("~nobody-of-this-name/set")
    assert os.listdir(tmp_path) == ["home"]


@pytest.mark.parametrize("source", ["", "a\0b", "x" * 5000])
def test_names_that_no_file_can_have(source: str) -> None:
    with pytest.raises(FastDMError):
        open_dataset(source)


@pytest.mark.parametrize("size", [0, -4, (4,), (4, 4, 4), "4", (4, 0)])
def test_sizes_that_make_no_sense(tmp_path: Path, size: Any) -> None:
    with pytest.raises(FastDMError, match="image_size"):
        open_dataset(folder(tmp_path), image_size=size)


# --- what others give ------------------------------------------------------------------------------------------------


class HuggingFace(Listed):
    """Items and features as Hugging Face's `datasets` has them."""

    def __init__(self, items: list[Any], names: list[str] | None = None) -> None:
        super().__init__(items)
        self.features = {"label": SimpleNamespace(names=names)} if names else {"label": "int"}


@pytest.mark.parametrize("keys", [("image", "label"), ("img", "fine_label")])
def test_items_of_hugging_face_s_datasets(keys: tuple[str, str]) -> None:
    items = [
        dict(zip(keys, (Image.fromarray(pixels), label), strict=True))
        for pixels, label in zip(PIXELS, LABELS, strict=True)
    ]
    opened = open_dataset(HuggingFace(items))
    assert torch.equal(opened.train.images, SORTED)
    assert opened.class_names == ("0", "1")
    if keys[1] == "label":
        assert open_dataset(HuggingFace(items, ["cat", "dog"])).class_names == ("cat", "dog")


def test_items_with_other_keys_are_named() -> None:
    with pytest.raises(FastDMError, match=r"item 0 is a dictionary of pixels, label; it must be \(image, label\)"):
        open_dataset(HuggingFace([{"pixels": PIXELS[0], "label": 0}]))


@pytest.mark.parametrize("name", ["set.zip", "set.tar.gz"])
def test_an_archive_is_to_be_unpacked(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"PK")
    with pytest.raises(FastDMError, match="is an archive; unpack it, and name the folder"):
        open_dataset(tmp_path / name)


@pytest.mark.parametrize(
    "of",
    [
        lambda x: x.contiguous(memory_format=torch.channels_last),
        lambda x: torch.stack([x, x], 1)[:, 1],
        lambda x: (x / 255).requires_grad_(),
        lambda x: (x / 255).half(),
        lambda x: x.numpy()[::-1][::-1],
        lambda x: tv_tensors.Image(x),
        lambda x: _in_inference_mode(x),
        lambda x: _read_only(x.numpy()),
    ],
    ids=["channels last", "strided", "gradient", "half", "negative strides", "subclass", "inference", "read-only"],
)
def test_tensors_and_arrays_of_any_layout_give_the_same_pool(of: Callable[[Tensor], Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        images = of(torch.from_numpy(PIXELS).permute(0, 3, 1, 2).contiguous())
        assert torch.equal(open_dataset((images, LABELS)).train.images, SORTED)


def _in_inference_mode(x: Tensor) -> Tensor:
    with torch.inference_mode():
        return x / 255


def _read_only(x: Any) -> Any:
    x = x.copy()
    x.flags.writeable = False
    return x
