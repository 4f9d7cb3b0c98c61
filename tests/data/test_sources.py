import os
import shutil
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from fastdm.data import Dataset, open_dataset
from fastdm.data.packing import pack
from fastdm.errors import FastDMError

REAL = os.environ.get("FASTDM_DATA")


def pictures(n: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(n).integers(0, 256, (n, *shape), dtype=np.uint8)


def save(array: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def class_images(dataset: Dataset, label: int) -> Tensor:
    offsets = dataset.train.class_offsets
    return dataset.train.images[offsets[label] : offsets[label + 1]]


# --- arrays ----------------------------------------------------------------------------------------------------------


def test_arrays_are_sorted_by_class_and_keep_their_order() -> None:
    images, labels = pictures(7, 5, 4, 3), np.array([2, 0, 1, 2, 0, 2, 1])
    dataset = open_dataset((images, labels))
    assert dataset.train.images.dtype == torch.uint8
    assert dataset.image_shape == (3, 5, 4)
    assert dataset.train.class_sizes.tolist() == [2, 2, 3]
    assert dataset.train.labels.tolist() == [0, 0, 1, 1, 2, 2, 2]
    expected = images[[1, 4, 2, 6, 0, 3, 5]].transpose(0, 3, 1, 2)
    assert np.array_equal(dataset.train.images.numpy(), expected)
    assert dataset.test is None
    assert dataset.class_names == ("0", "1", "2")


def test_layouts_and_dtypes_give_one_pool() -> None:
    nhwc = pictures(6, 8, 8, 3)
    labels = [0, 0, 1, 1, 2, 2]
    expected = open_dataset((nhwc, labels)).train.images
    nchw = torch.from_numpy(nhwc).permute(0, 3, 1, 2)
    for images in (nchw, nchw.float() / 255, nchw.double() / 255, nhwc.astype(np.float32) / 255):
        assert torch.equal(open_dataset((images, labels)).train.images, expected)
    grey = open_dataset((nhwc[..., 0], np.array(labels)[:, None])).train.images
    assert torch.equal(grey[:, 0], expected[:, 0])


def test_mean_and_std_are_those_of_the_train_part() -> None:
    images = pictures(5000, 3, 3, 2)  # more than one chunk; the last axis holds the two parts
    pixels = images / 255
    dataset = open_dataset((images[..., 0], np.zeros(5000, int), images[:2, ..., 1], [0, 0]))
    np.testing.assert_allclose(dataset.mean, [pixels[..., 0].mean()], rtol=1e-12)
    np.testing.assert_allclose(dataset.std, [pixels[..., 0].std()], rtol=1e-12)
    assert dataset.test is not None
    assert len(dataset.test) == 2
    constant = open_dataset((np.full((2, 4, 4), 51, np.uint8), [0, 0]))
    np.testing.assert_allclose([*constant.mean, *constant.std], [0.2, 1])


def test_presets_go_by_name() -> None:
    images, labels = pictures(2, 4, 4, 3), [0, 1]
    assert open_dataset((images, labels), name="CIFAR10").mean == (0.4914, 0.4822, 0.4465)
    assert open_dataset((images, labels), name="my-ImageNet-100").std == (0.229, 0.224, 0.225)
    assert len(open_dataset((images[..., 0], labels), name="imagenet-grey").mean) == 1


def test_a_dataset_stays_as_it_is() -> None:
    dataset = open_dataset((pictures(2, 4, 4), [0, 1]))
    assert open_dataset(dataset) is dataset


PIXELS = pictures(4, 6, 6, 3)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ((PIXELS, [0, 1, 3, 3]), "no training image of class 2; labels must be 0..3 without gaps"),
        ((PIXELS, [1, 1, 2, 2]), "no training image of class 0"),
        ((PIXELS, [0, -1, 0, 0]), "train label -1 is not one of 0..0"),
        ((PIXELS, [0, 1, 1]), "4 train images, but 3 labels"),
        ((PIXELS, [0.0, 1.0, 1.0, 1.0]), "labels must be integers"),
        ((PIXELS, ["a", "b", "c", "d"]), "labels are not an array of numbers"),
        ((PIXELS.astype(np.float32), [0, 1, 1, 1]), r"must lie in \[0, 1\], not \d+..25\d; give values"),
        ((np.full((4, 6, 6), np.nan), [0, 1, 1, 1]), "some pixels are NaN"),
        ((PIXELS.astype(np.int64), [0, 1, 1, 1]), "pixels are torch.int64"),
        ((np.zeros((4, 6, 6, 5), np.uint8), [0, 1, 1, 1]), "with 1 or 3 channels"),
        (([PIXELS[0], PIXELS[1, :4]], [0, 1]), "images are not an array of numbers of one shape"),
        ((PIXELS, [0, 1, 1, 1], PIXELS[:, :5], [0, 1, 1, 1]), "test images are 3x5x6, training images 3x6x6"),
        ((PIXELS, [0, 1, 1, 1], PIXELS, [0, 1, 1, 2]), "test label 2 is not one of 0..1"),
        ((PIXELS[:0], np.zeros(0, int)), "there is no training image"),
        ((PIXELS,), "not tuple of 1"),
    ],
)
def test_bad_arrays(source: tuple[object, ...], message: str) -> None:
    with pytest.raises(FastDMError, match=message):
        open_dataset(source)  # type: ignore[arg-type]


# --- files -----------------------------------------------------------------------------------------------------------


def test_npz(tmp_path: Path) -> None:
    images, labels = pictures(4, 6, 6, 3), np.array([1, 0, 1, 0])
    np.savez(tmp_path / "set.npz", y_train=labels, x_train=images, x_test=images[:1], y_test=labels[:1])
    dataset = open_dataset(tmp_path / "set.npz")
    assert dataset.name == "set"
    assert np.array_equal(dataset.train.images.numpy(), images[[1, 3, 0, 2]].transpose(0, 3, 1, 2))
    assert dataset.test is not None
    assert dataset.test.class_sizes.tolist() == [0, 1]


def test_bad_npz(tmp_path: Path) -> None:
    path = tmp_path / "set.npz"
    np.savez(path, x_train=PIXELS, y_train=[0, 0, 1, 1], x_test=PIXELS)
    with pytest.raises(FastDMError, match=r"set.npz must hold x_train and y_train, and for a test part both"):
        open_dataset(path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(FastDMError, match=r"set.npz is not a readable .npz file"):
        open_dataset(path)


def test_the_public_codes_tiny_imagenet(tmp_path: Path) -> None:
    images = torch.from_numpy(pictures(4, 3, 8, 8))
    data = {
        "classes": ["fish", "owl"],
        "images_train": images,
        "labels_train": torch.tensor([1, 0, 1, 0]),
        "images_val": images[:2],
        "labels_val": torch.tensor([1, 0]),
    }
    torch.save(data, tmp_path / "tinyimagenet.pt")
    dataset = open_dataset("TinyImageNet", data_path=tmp_path)
    assert dataset.name == "TinyImageNet"
    assert dataset.class_names == ("fish", "owl")
    assert dataset.mean == (0.485, 0.456, 0.406)
    assert torch.equal(class_images(dataset, 1), images[[0, 2]])
    assert dataset.test is not None
    assert torch.equal(dataset.test.images, images[[1, 0]])


def test_bad_pt(tmp_path: Path) -> None:
    torch.save({"data": []}, tmp_path / "a.pt")
    with pytest.raises(
        FastDMError, match=r"a.pt is not a data set: a .pt file must hold a dict of classes, images_train"
    ):
        open_dataset(tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes(b"nothing")
    with pytest.raises(FastDMError, match=r"b.pt is not a readable .pt file"):
        open_dataset(tmp_path / "b.pt")


def test_unknown_names_and_missing_sets(tmp_path: Path) -> None:
    with pytest.raises(FastDMError, match=r"unknown data set 'CIFAR11'; did you mean CIFAR10 or CIFAR100\?"):
        open_dataset("CIFAR11", data_path=tmp_path)
    with pytest.raises(FastDMError, match=r"unknown data set 'flowers'; choose one of MNIST, .* no file or folder"):
        open_dataset("flowers", data_path=tmp_path)
    with pytest.raises(FastDMError, match=r"unknown data set '.*flowers.npz': there is no such file"):
        open_dataset(tmp_path / "flowers.npz")
    assert open_dataset("DIGITS").name == "digits"
    with pytest.raises(FastDMError, match=r"put the folder .*tiny-imagenet-200 or the file .*tinyimagenet.pt in place"):
        open_dataset("TinyImageNet", data_path=tmp_path)


@pytest.mark.parametrize(
    ("name", "file"),
    [("FashionMNIST", "FashionMNIST/raw/{train-images-idx3-ubyte.gz"), ("CIFAR10", "the folder cifar-10-batches-py/")],
)
def test_a_failed_download_says_what_to_fetch(
    name: str, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(*args: object, **kwargs: object) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    with pytest.raises(FastDMError) as caught:
        open_dataset(name, data_path=tmp_path)
    assert f"{name} is not in {tmp_path}" in str(caught.value)
    assert file in str(caught.value)


def write_idx(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes() + array.tobytes())


def test_torchvisions_fashion_mnist(tmp_path: Path) -> None:
    images, labels = pictures(20, 28, 28), np.arange(20, dtype=np.uint8)[::-1] % 10
    for part, n in (("train", 20), ("t10k", 10)):
        write_idx(tmp_path / f"FashionMNIST/raw/{part}-images-idx3-ubyte", images[:n])
        write_idx(tmp_path / f"FashionMNIST/raw/{part}-labels-idx1-ubyte", labels[:n])
    dataset = open_dataset("FashionMNIST", data_path=tmp_path)
    assert dataset.image_shape == (1, 28, 28)
    assert dataset.class_names[0] == "T-shirt/top"
    assert (dataset.mean, dataset.std) == ((0.2861,), (0.3530,))
    assert np.array_equal(class_images(dataset, 9)[:, 0].numpy(), images[[0, 10]])
    assert dataset.test is not None
    assert dataset.test.class_sizes.tolist() == [1] * 10


@pytest.mark.skipif(REAL is None, reason="FASTDM_DATA names no folder of real data sets")
def test_real_cifar10() -> None:
    dataset = open_dataset("CIFAR10", data_path=str(REAL))
    assert dataset.train.class_sizes.tolist() == [5000] * 10
    assert dataset.test is not None
    assert dataset.test.class_sizes.tolist() == [1000] * 10
    mean = [dataset.train.images[:, channel].double().mean() / 255 for channel in range(3)]
    np.testing.assert_allclose(mean, dataset.mean, atol=5.1e-5)  # the preset has four digits


def test_digits() -> None:
    from sklearn.datasets import load_digits

    dataset = open_dataset("digits")
    assert dataset.test is not None
    assert dataset.test.class_sizes.tolist() == [36] * 10
    assert dataset.image_shape == (1, 8, 8)
    assert torch.equal(dataset.train.images, open_dataset("digits").train.images)
    # Both parts together are the whole, class by class: no image is lost, and none is in both.
    whole = load_digits()
    for label in range(10):
        test = dataset.test.images[36 * label : 36 * label + 36]
        ours = torch.cat([class_images(dataset, label), test]).flatten(1).tolist()
        theirs = np.rint(whole.data[whole.target == label] * 255 / 16).astype(int).tolist()
        assert sorted(ours) == sorted(theirs)


# --- folders ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "animals"
    for label in ("cat", "ape", "dog"):
        for number in range(3):
            save(pictures(3, 6, 5, 3)[number], root / "train" / label / f"{number}.png")
        save(pictures(1, 6, 5, 3)[0], root / "val" / label / "x.png")
    return root


def test_image_folder(tree: Path) -> None:
    dataset = open_dataset(str(tree))
    assert dataset.name == "animals"
    assert dataset.class_names == ("ape", "cat", "dog")
    assert dataset.image_shape == (3, 6, 5)
    assert dataset.train.class_sizes.tolist() == [3, 3, 3]
    assert np.array_equal(class_images(dataset, 1).numpy(), pictures(3, 6, 5, 3).transpose(0, 3, 1, 2))
    assert dataset.test is not None
    assert len(dataset.test) == 3
    (tree / "val").rename(tree / "test")
    assert open_dataset(tree).test is not None
    assert open_dataset(tree / "train").test is None


def test_grey_images_become_rgb(tree: Path) -> None:
    grey = pictures(1, 6, 5)[0]
    save(grey, tree / "train" / "ape" / "0.png")
    assert (class_images(open_dataset(tree), 0)[0].numpy() == grey).all()


def test_resizing_is_a_box_filter(tree: Path) -> None:
    large = pictures(1, 12, 16, 3)[0]
    save(large, tree / "train" / "ape" / "0.png")
    image = class_images(open_dataset(tree, image_size=(6, 8)), 0)[0]
    blocks = large.transpose(2, 0, 1).reshape(3, 6, 2, 8, 2).astype(float)
    assert np.abs(image.numpy() - blocks.mean((2, 4))).max() <= 1  # Pillow rounds after each axis


def test_images_of_different_sizes(tree: Path) -> None:
    save(PIXELS[0], tree / "train" / "dog" / "2.png")
    with pytest.raises(FastDMError, match=r"0.png is 6x5, .*2.png is 6x6; give image_size="):
        open_dataset(tree)
    assert open_dataset(tree, image_size=4).image_shape == (3, 4, 4)


def test_a_class_without_images(tree: Path) -> None:
    (tree / "train" / "cow").mkdir()
    with pytest.raises(FastDMError, match="cow: no image of this class"):
        open_dataset(tree)


def test_a_class_of_the_test_part_only(tree: Path) -> None:
    save(PIXELS[0], tree / "val" / "cow" / "x.png")
    with pytest.raises(FastDMError, match="class 'cow' of the test part has no training images"):
        open_dataset(tree)


def test_a_folder_without_classes(tmp_path: Path) -> None:
    with pytest.raises(FastDMError, match="holds no class folders"):
        open_dataset(tmp_path)


def test_an_unreadable_folder(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "iterdir", refuse)  # the superuser may read everything
    with pytest.raises(FastDMError, match="animals cannot be read: Permission denied"):
        open_dataset(tree)


def test_a_broken_image_is_named(tree: Path) -> None:
    path = tree / "train" / "cat" / "1.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(FastDMError, match=r"cat/1.png is not a readable image"):
        open_dataset(tree)


def test_image_size_is_for_folders() -> None:
    with pytest.raises(FastDMError, match="image_size is for folders of image files"):
        open_dataset((PIXELS, [0, 1, 1, 1]), image_size=4)
    with pytest.raises(FastDMError, match="image_size is for folders of image files"):
        open_dataset("digits", image_size=4)


def test_tiny_imagenet_as_distributed(tmp_path: Path) -> None:
    root = tmp_path / "tiny-imagenet-200"
    for wnid in ("n02", "n01"):
        for number in range(2):
            save(pictures(2, 8, 8, 3)[number], root / "train" / wnid / "images" / f"{wnid}_{number}.png")
    for number in range(3):
        save(pictures(3, 8, 8, 3)[number], root / "val" / "images" / f"val_{number}.png")
    lines = [f"val_{number}.png\t{wnid}\t0\t0\t7\t7\n" for number, wnid in enumerate(["n02", "n01", "n02"])]
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    shutil.copytree(root / "val" / "images", root / "test" / "images")  # the unlabelled part, of no use
    dataset = open_dataset("TinyImageNet", data_path=tmp_path)
    assert dataset.name == "TinyImageNet"
    assert dataset.class_names == ("n01", "n02")
    assert dataset.test is not None
    assert dataset.test.class_sizes.tolist() == [1, 2]
    expected = pictures(3, 8, 8, 3)[[1, 0, 2]].transpose(0, 3, 1, 2)
    assert np.array_equal(dataset.test.images.numpy(), expected)


def test_a_packed_file_is_kept_where_io_says(tmp_path: Path) -> None:
    images = torch.arange(8 * 3 * 4 * 4, dtype=torch.uint8).view(8, 3, 4, 4)
    pack((images, torch.arange(8) % 2), tmp_path / "set.fastdm")
    index = torch.tensor([1, 6])
    for io in ("auto", "mmap", "ram", "direct"):
        pool = open_dataset(tmp_path / "set.fastdm", io=io).train
        assert torch.equal(pool.gather(index), torch.stack([images[2], images[5]]))
        assert (pool.backing is None) == (io == "ram")
    with pytest.raises(FastDMError, match="io 'cloud' is not one of"):
        open_dataset(tmp_path / "set.fastdm", io="cloud")  # type: ignore[arg-type]


def test_one_large_label_is_refused_before_anything_of_its_size_is_made() -> None:
    images = torch.zeros(40, 8, 8, dtype=torch.uint8)
    with pytest.raises(FastDMError, match="40 training images cannot belong to 1000000040 classes"):
        open_dataset((images, torch.arange(40) + 10**9))
