"""Which images are found where, in every layout."""

import re
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from fastdm.data.folders import find_images, folder_name
from fastdm.errors import FastDMError


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def names(files: dict[str, list[Path]] | None) -> dict[str, list[str]] | None:
    return None if files is None else {label: [path.name for path in paths] for label, paths in files.items()}


def test_class_folders_directly(tmp_path: Path) -> None:
    for path in (
        "b/2.JPEG",
        "b/10.jpg",
        "a/deep/x.png",
        "a/notes.txt",
        ".hidden/1.jpg",
        "a/._x.png",
        "__MACOSX/a/x.png",
    ):
        touch(tmp_path / path)
    found = find_images(tmp_path)
    assert found.class_names == ("a", "b")
    assert names(found.train) == {"a": ["x.png"], "b": ["10.jpg", "2.JPEG"]}
    assert found.test is None


@pytest.mark.parametrize("part", ["val", "valid", "test"])
def test_a_test_part_in_class_folders(tmp_path: Path, part: str) -> None:
    for path in ("train/a/1.jpg", "train/b/1.jpg", f"{part}/b/9.jpg"):
        touch(tmp_path / path)
    assert names(find_images(tmp_path).test) == {"b": ["9.jpg"]}


def test_tiny_imagenet(tmp_path: Path) -> None:
    for path in ("train/n1/images/n1_0.JPEG", "train/n1/n1_boxes.txt", "train/n2/images/n2_0.JPEG"):
        touch(tmp_path / path)
    for i in range(2):
        touch(tmp_path / f"val/images/val_{i}.JPEG")
    (tmp_path / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn2\t0\t0\t9\t9\nval_1.JPEG\tn1\t0\t0\t9\t9\n")
    found = find_images(tmp_path)
    assert names(found.train) == {"n1": ["n1_0.JPEG"], "n2": ["n2_0.JPEG"]}
    assert names(found.test) == {"n1": ["val_1.JPEG"], "n2": ["val_0.JPEG"]}


def imagenet(base: Path) -> None:
    for path in ("train/n1/n1_0.JPEG", "train/n2/n2_0.JPEG"):
        touch(base / path)
    for i in (1, 2, 3):
        touch(base / f"val/ILSVRC2012_val_{i:08d}.JPEG")


@pytest.mark.parametrize("inside", ["", "ILSVRC/Data/CLS-LOC"], ids=["beside", "as Kaggle unpacks it"])
def test_imagenet_with_kaggles_list(tmp_path: Path, inside: str) -> None:
    imagenet(tmp_path / inside)
    rows = "ILSVRC2012_val_00000002,n1 1 2 3 4 n1 5 6 7 8\nILSVRC2012_val_00000003,n2 1 2 3 4 \n"
    (tmp_path / "LOC_val_solution.csv").write_text(
        f"ImageId,PredictionString\n{rows}ILSVRC2012_val_00000001,n1 1 2 3 4 \n"
    )
    expected = {
        "n1": ["ILSVRC2012_val_00000001.JPEG", "ILSVRC2012_val_00000002.JPEG"],
        "n2": ["ILSVRC2012_val_00000003.JPEG"],
    }
    assert names(find_images(tmp_path).test) == expected
    assert names(find_images(tmp_path / inside).test) == expected


def test_a_list_among_the_images_is_not_one_that_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    imagenet(tmp_path)
    rows = "".join(f"ILSVRC2012_val_0000000{number},n{1 + number % 2}\n" for number in (1, 2, 3))
    (tmp_path / "val" / "LOC_val_solution.csv").write_text(f"ImageId,PredictionString\n{rows}")
    assert sum(map(len, (find_images(tmp_path).test or {}).values())) == 3
    assert "LOC_val_solution.csv" not in caplog.text


def test_imagenet_with_its_devkit(tmp_path: Path) -> None:
    io = pytest.importorskip("scipy.io")
    imagenet(tmp_path)
    devkit = tmp_path / "ILSVRC2012_devkit_t12" / "data"
    devkit.mkdir(parents=True)
    synsets = np.array(
        [(1, "n2", "words"), (2, "n1", "words")], dtype=[(n, object) for n in ("ILSVRC2012_ID", "WNID", "words")]
    )
    io.savemat(devkit / "meta.mat", {"synsets": synsets})
    (devkit / "ILSVRC2012_validation_ground_truth.txt").write_text("2\n1\n2\n")
    assert names(find_images(tmp_path).test) == {
        "n1": ["ILSVRC2012_val_00000001.JPEG", "ILSVRC2012_val_00000003.JPEG"],
        "n2": ["ILSVRC2012_val_00000002.JPEG"],
    }


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("LOC_val_solution.csv", "a,b\n1,2\n"),
        ("LOC_val_solution.csv", "ImageId,PredictionString\nILSVRC2012_val_00000001\n"),
        ("val/val_annotations.txt", "val_0.JPEG n2\n"),
        ("ILSVRC2012_devkit_t12/data/meta.mat", "text"),
    ],
    ids=["other columns", "half a row", "spaces for tabs", "no MATLAB file"],
)
def test_a_list_of_labels_of_another_form_is_refused_by_name(tmp_path: Path, name: str, text: str) -> None:
    imagenet(tmp_path)
    touch(tmp_path / name).write_text(text)
    with pytest.raises(FastDMError, match=f"{name.removesuffix('/meta.mat')} is not a list of labels"):
        find_images(tmp_path)


def test_a_flat_test_part_without_labels_is_left_out_with_a_note(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    imagenet(tmp_path / "a" / "b" / "c" / "d")
    assert find_images(tmp_path / "a" / "b" / "c" / "d").test is None
    assert re.search(r"val has no class folders and no list of labels.*LOC_val_solution\.csv", caplog.text)


def test_folders_without_classes_or_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FastDMError, match="holds no class folders"):
        find_images(tmp_path)
    (tmp_path / "a").mkdir()
    with pytest.raises(FastDMError, match="a: no image of this class"):
        find_images(tmp_path)


def test_a_test_class_without_training_images_is_refused(tmp_path: Path) -> None:
    for path in ("train/a/1.jpg", "val/b/1.jpg"):
        touch(tmp_path / path)
    with pytest.raises(FastDMError, match="class 'b' of the test part has no training images"):
        find_images(tmp_path)


def test_two_classes_of_one_name_are_refused(tmp_path: Path) -> None:
    for form in ("NFC", "NFD"):
        touch(tmp_path / unicodedata.normalize(form, "café") / "1.jpg")
    if len(list(tmp_path.iterdir())) == 2:  # some file systems make one of them
        with pytest.raises(FastDMError, match="two classes of the name 'café'"):
            find_images(tmp_path)


def test_names_that_differ_in_case_are_two_classes(tmp_path: Path) -> None:
    for name in ("Cat", "cat"):
        touch(tmp_path / name / f"{name}.jpg")
    if len(list(tmp_path.iterdir())) == 2:  # some file systems make one of them
        assert names(find_images(tmp_path).train) == {"Cat": ["Cat.jpg"], "cat": ["cat.jpg"]}


def test_a_loop_of_links_is_refused_and_other_links_are_followed(tmp_path: Path) -> None:
    touch(tmp_path / "elsewhere" / "1.jpg")
    root = tmp_path / "root"
    touch(root / "a" / "2.jpg")
    (root / "b").symlink_to(tmp_path / "elsewhere")
    assert names(find_images(root).train) == {"a": ["2.jpg"], "b": ["1.jpg"]}
    (root / "a" / "up").symlink_to(root / "a")
    with pytest.raises(FastDMError, match="up is a symbolic link to a folder that it stands in"):
        find_images(root)


def test_the_name_of_a_folder(tmp_path: Path) -> None:
    assert folder_name(tmp_path / "imagenet") == folder_name(tmp_path / "imagenet" / "train") == "imagenet"
