"""Every exported form is read back as the 8-bit pixels of the set, class by class."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import fastdm
from fastdm.applications.export import class_folders, count_clipped, rounded
from fastdm.cli import app
from fastdm.errors import FastDMError
from tests.oracles import random_dataset

NAMES = ("zebra", "T-shirt/top", ".hidden")


def a_set(channels: int = 3, names: tuple[str, ...] = ("a", "b", "c")) -> fastdm.SyntheticSet:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2 * len(names), channels, 5, 7, generator=generator)
    return fastdm.SyntheticSet(images, names, (0.5,) * channels, (0.25,) * channels, "random", {"network": "ConvNetD1"})


@pytest.mark.parametrize("name", ["folder", "set.npz", "set.pt"])
@pytest.mark.parametrize("names", [("a", "b", "c"), NAMES], ids=["plain", "awkward"])
def test_open_dataset_reads_it_back(tmp_path: Path, name: str, names: tuple[str, ...]) -> None:
    synthetic = a_set(names=names)
    exported = fastdm.export(synthetic, tmp_path / name)
    data = fastdm.open_dataset(exported.path)
    assert torch.equal(data.train.images, synthetic.pixels())
    assert torch.equal(data.train.labels, synthetic.labels)
    assert data.test is None
    if name == "set.pt":
        assert data.class_names == names


def test_a_folder_is_read_by_torchvision(tmp_path: Path) -> None:
    from torchvision.datasets import ImageFolder

    synthetic = a_set(names=NAMES)
    fastdm.export(synthetic, tmp_path / "out")
    folder = ImageFolder(str(tmp_path / "out"))
    assert folder.classes == ["0_zebra", "1_T-shirt-top", "2_hidden"]
    assert [label for _, label in folder.samples] == synthetic.labels.tolist()
    about = json.loads((tmp_path / "out" / "about.json").read_text())
    assert about["class_names"] == list(NAMES)
    assert about["mean"] == [0.5] * 3


def test_grey_images_stay_grey_in_arrays_and_become_rgb_from_a_folder(tmp_path: Path) -> None:
    synthetic = a_set(channels=1)
    fastdm.export(synthetic, tmp_path / "out")
    fastdm.export(synthetic, tmp_path / "out.npz")
    assert fastdm.open_dataset(tmp_path / "out.npz").image_shape == (1, 5, 7)
    folder = fastdm.open_dataset(tmp_path / "out")
    assert torch.equal(folder.train.images, synthetic.pixels().expand(-1, 3, -1, -1))


def test_the_public_form_keeps_the_pixels_as_they_are(tmp_path: Path) -> None:
    synthetic = a_set()
    fastdm.export(synthetic, tmp_path / "set.pt")
    content = torch.load(tmp_path / "set.pt", weights_only=True)
    ((images, labels),) = content["data"]
    assert torch.equal(images, synthetic.images)
    assert torch.equal(labels, synthetic.labels)
    data = random_dataset([3, 3, 3], shape=(3, 5, 7))
    assert torch.equal(fastdm.SyntheticSet.load(tmp_path / "set.pt", dataset=data).images, synthetic.images)


def test_the_public_form_says_what_fastdm_knows(tmp_path: Path) -> None:
    synthetic = a_set()
    fastdm.export(synthetic, tmp_path / "set.pt")
    loaded = fastdm.SyntheticSet.load(tmp_path / "set.pt")
    assert loaded.summary() == synthetic.summary()
    assert torch.equal(loaded.images, synthetic.images)


def test_what_is_there_is_replaced_when_asked(tmp_path: Path) -> None:
    first, second = a_set(), a_set(channels=1)
    for name, format in (
        ("set.npz", None),
        ("set.pt", None),
        ("set.safetensors", None),
        ("images_best.pt", "mtt"),
        ("folder", None),
    ):
        out = tmp_path / name
        fastdm.export(first, out, format=format)
        if format == "mtt":
            out.unlink()  # its labels are there
        before = contents(tmp_path)
        with pytest.raises(FastDMError, match=r"is there already: overwrite it, or choose another \(--overwrite\)"):
            fastdm.export(second, out, format=format)
        assert contents(tmp_path) == before
        fastdm.export(second, out, format=format, overwrite=True)
        assert contents(tmp_path) != before
    names = {"set.npz", "set.pt", "set.safetensors", "images_best.pt", "labels_best.pt", "folder"}
    assert {path.name for path in tmp_path.iterdir()} == names
    (tmp_path / "folder" / "mine.txt").touch()
    with pytest.raises(FastDMError, match="is not an empty folder; choose another"):
        fastdm.export(second, tmp_path / "folder", overwrite=True)
    assert (tmp_path / "folder" / "mine.txt").exists()


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_link_to_a_folder_is_followed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    for overwrite in (False, True):
        fastdm.export(a_set(), tmp_path / "link", overwrite=overwrite)
        assert (tmp_path / "link").is_symlink()
        assert len(fastdm.open_dataset(tmp_path / "disk").train) == 6


def test_a_partition_is_decoded(tmp_path: Path) -> None:
    synthetic = fastdm.random_selection("digits", ipc=1, partition=2)
    exported = fastdm.export(synthetic, tmp_path / "set.npz")
    data = fastdm.open_dataset(exported.path)
    assert torch.equal(data.train.images, synthetic.expand().pixels())
    assert len(data.train) == 4 * len(synthetic)


def test_soft_labels_that_are_left_out_are_named(tmp_path: Path) -> None:
    soft = torch.full((6, 3), 1 / 3, dtype=torch.float16)
    exported = fastdm.export(replace(a_set(), soft_labels=soft), tmp_path / "set.npz")
    assert str(exported).endswith("soft labels are left out")


def test_clipped_values_are_counted() -> None:
    """mean 0.5, std 0.25: beyond 2 (1 + 1/255) in either direction is more than rounding."""
    synthetic = a_set()
    images = torch.zeros(6, 3, 5, 7)
    images[0, 0, 0, :3] = torch.tensor([2.0, 2.005, 2.02])
    images[0, 1, 0, :2] = torch.tensor([-2.005, -3.0])
    synthetic = fastdm.SyntheticSet(images, synthetic.class_names, synthetic.mean, synthetic.std, "random")
    assert count_clipped(synthetic) == 2
    assert rounded(synthetic).images[0, 0, 0, 2] == 2
    assert (rounded(synthetic).images - images.clamp(-2, 2)).abs().max() <= 0.5 / 255 / 0.25 + 1e-6


def test_class_folders_keep_the_order_of_labels() -> None:
    assert class_folders(["a", "b"]) == ["a", "b"]
    assert class_folders(["b", "a"]) == ["0_b", "1_a"]
    assert class_folders(["a", "a"]) == ["0_a", "1_a"]
    many = class_folders([f"{n}" for n in range(12)])
    assert many == sorted(many)
    assert many[10] == "10_10"


def test_bad_targets_are_refused(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("keep")
    with pytest.raises(FastDMError, match="not an empty folder"):
        fastdm.export(a_set(), tmp_path / "full")
    assert (tmp_path / "full" / "mine.txt").read_text() == "keep"
    with pytest.raises(FastDMError, match=r"\.npz, \.pt or \.safetensors"):
        fastdm.export(a_set(), tmp_path / "set.zip")
    with pytest.raises(FastDMError, match=r"absent\.safetensors"):
        fastdm.export(tmp_path / "absent.safetensors", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


def test_the_command_measures_what_8_bits_cost(tmp_path: Path) -> None:
    fastdm.random_selection("digits", ipc=1).save(tmp_path / "set.safetensors")
    arguments = ["export", str(tmp_path / "set.safetensors"), str(tmp_path / "png"), "--measure"]
    result = CliRunner().invoke(app, [*arguments, "--num_eval", "1", "--epoch_eval_train", "1", "--device", "cpu"])
    assert result.exit_code == 0, result.output
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert lines[0] == {"saved": str(tmp_path / "png"), "values": 640, "clipped": 0}
    measured = {line["evaluation"]: line["accuracies"] for line in lines if "evaluation" in line}
    assert measured.keys() == {"the set as it is", "with 8-bit pixels"}
