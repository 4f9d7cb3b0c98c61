"""Folders as people have them: parts by any usual name, foreign files, kinds of images, and what is left out."""

import os
import re
import socket
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastdm.data import open_dataset
from fastdm.data.decode import LARGEST_FILE
from fastdm.data.folders import DEEPEST, find_images
from fastdm.data.packing import pack
from fastdm.errors import FastDMError
from fastdm.evaluation.protocol import Protocol
from fastdm.synthetic.initial import random_selection
from fastdm.synthetic.synthetic_set import SyntheticSet

RNG = np.random.default_rng(3)


def put(path: Path, **options: object) -> Path:
    """Save a random image there, in the format of the suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path, **options)
    return path


def classes(folder: Path, names: str = "012", count: int = 2) -> None:
    for name in names:
        for number in range(count):
            put(folder / name / f"{number}.png")


def note(caplog: pytest.LogCaptureFixture) -> str:
    """The one warning that there is."""
    (record,) = [record for record in caplog.records if record.name == "fastdm"]
    caplog.clear()
    return record.getMessage()


# --- parts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("training", "testing"),
        ("Train", "Test"),
        ("seg_train", "seg_test"),
        ("training_set", "test_set"),
        ("TRAIN", "VAL"),
        ("train", "validation"),
        ("Training Set", "Validation-Set"),
    ],
)
def test_the_parts_have_any_usual_name(tmp_path: Path, train: str, test: str, caplog: pytest.LogCaptureFixture) -> None:
    root = tmp_path / "set"
    classes(root / train, count=3)
    classes(root / test, count=1)
    opened = open_dataset(root)
    assert opened.class_names == ("0", "1", "2")
    assert opened.train.class_sizes.tolist() == [3, 3, 3]
    assert opened.test is not None
    assert opened.test.class_sizes.tolist() == [1, 1, 1]
    assert open_dataset(root / train).name == "set"
    assert not caplog.records


def test_folders_that_an_archive_nests_under_their_own_name_are_opened(tmp_path: Path) -> None:
    classes(tmp_path / "seg_train" / "seg_train")
    classes(tmp_path / "seg_test" / "seg_test")
    put(tmp_path / "seg_test" / "seg_test" / "0" / "more.png")
    found = find_images(tmp_path)
    assert found.class_names == ("0", "1", "2")
    assert found.test is not None
    assert [len(files) for files in found.test.values()] == [3, 2, 2]


def test_a_part_that_is_not_used_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for part in ("train", "val", "test", "extra"):
        classes(tmp_path / part)
    find_images(tmp_path)
    text = note(caplog)
    assert "folders next to train/ that are not used: 1 (such as extra)" in text
    assert "test/ is not used, val/ is the test part" in text


def test_a_labelled_test_part_is_preferred_to_one_without_labels(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    classes(tmp_path / "train")
    put(tmp_path / "val" / "1.png")
    classes(tmp_path / "test", count=1)
    found = find_images(tmp_path)
    assert found.test is not None
    assert [path.parent.parent.name for path in found.test["0"]] == ["test"]
    assert "val has no class folders" in note(caplog)


@pytest.mark.parametrize("inside", ["", "images", "unknown"])
def test_without_labels_the_test_part_is_missing_when_it_comes_to_evaluating(
    tmp_path: Path, inside: str, caplog: pytest.LogCaptureFixture
) -> None:
    classes(tmp_path / "train")
    put(tmp_path / "test" / inside / "1.png")
    opened = open_dataset(tmp_path)
    assert opened.test is None
    assert "test has no class folders and no list of labels" in note(caplog)
    with pytest.raises(FastDMError, match="has no test part to measure accuracies on"):
        Protocol(("ConvNet",), "none").check(opened)


def test_a_class_called_train_is_a_class(tmp_path: Path) -> None:
    classes(tmp_path, ["bicycle", "train"])  # type: ignore[arg-type]
    assert find_images(tmp_path).class_names == ("bicycle", "train")


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (("val/0", "test/0"), "holds val/, test/, but no folder of a training part"),
        (("train/0", "Training/0"), "one of them must be the training part"),
        (("train/steam", "car"), "train/ may be the training part or, like car/, a class"),
        (("train/0", "test/0", "test/1"), "class '1' of the test part has no training images"),
        (("train", "test"), "train holds no class folders"),
    ],
)
def test_parts_that_cannot_be_told_apart_are_refused(tmp_path: Path, folders: tuple[str, ...], message: str) -> None:
    for folder in folders:
        put(tmp_path / folder / "1.png")
    with pytest.raises(FastDMError, match=message):
        find_images(tmp_path)


def test_folders_of_the_same_folders_are_classes_with_a_note(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    classes(tmp_path / "amazon")
    classes(tmp_path / "webcam")
    assert find_images(tmp_path).class_names == ("amazon", "webcam")
    assert re.search(r"amazon, webcam, … are taken as classes, though .* same folders \(0, 1, 2", note(caplog))


# --- what is left out ------------------------------------------------------------------------------------------------


def test_foreign_files_are_skipped_at_every_depth_and_named_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    classes(tmp_path, "ab")
    for path in (
        "a/.ipynb_checkpoints/0-checkpoint.png",
        "b/@eaDir/0.png/T.jpg",
        "a/deep/.thumbnails/1.png",
        "b/__MACOSX/1.png",
        ".git/1.png",
        "lost+found/1.png",
    ):
        put(tmp_path / path)
    found = find_images(tmp_path)
    assert [[path.name for path in files] for files in found.train.values()] == [["0.png", "1.png"]] * 2
    assert "hidden and system files and folders skipped: 6 (such as" in note(caplog)


def test_files_that_are_no_images_are_counted_opened_and_packed_alike(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    classes(tmp_path / "set", "ab")
    for name in ("notes.txt", "label.xml", "deep/x.npy"):
        (tmp_path / "set" / "a" / "deep").mkdir(exist_ok=True)
        (tmp_path / "set" / "a" / name).write_text("text")
    put(tmp_path / "set" / "stray.png")
    (tmp_path / "set" / "README").write_text("about these images")
    open_dataset(tmp_path / "set")
    opened = note(caplog)
    assert "files that are not images that Pillow reads left out: 3 (such as" in opened
    assert "images outside the class folders left out: 1 (such as" in opened
    pack(tmp_path / "set", tmp_path / "a.fdm", size=8)
    assert note(caplog).partition(": ")[2] == opened.partition(": ")[2]


def test_a_clean_folder_says_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    classes(tmp_path)
    open_dataset(tmp_path)
    assert not caplog.records


def test_images_that_a_list_of_labels_leaves_out_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    classes(tmp_path / "train")
    for number in range(3):
        put(tmp_path / "val" / "images" / f"{number}.png")
    (tmp_path / "val" / "val_annotations.txt").write_text("1.png\t2\t0\n")
    assert find_images(tmp_path).test == {"2": [tmp_path / "val" / "images" / "1.png"]}
    assert "that val_annotations.txt does not name: 2 (such as 0.png)" in note(caplog)


@pytest.mark.parametrize("name", ["../../secret.png", "/etc/secret.png", "sub/1.png", "..", ""])
def test_a_list_of_labels_never_leads_out_of_its_folder(tmp_path: Path, name: str) -> None:
    classes(tmp_path / "train")
    put(tmp_path / "val" / "images" / "1.png")
    put(tmp_path / "secret.png")
    (tmp_path / "val" / "val_annotations.txt").write_text(f"{name}\t2\t0\n")
    with pytest.raises(FastDMError, match="which is not a file in that folder"):
        find_images(tmp_path)
    (tmp_path / "val" / "val_annotations.txt").write_text("1.png\t2\t0\n1.png\t1\t0\n")
    with pytest.raises(FastDMError, match=r"names '1\.png' of .*, twice"):
        find_images(tmp_path)


# --- which files are images ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "format"),
    [
        ("x.jfif", "JPEG"),
        ("x.jpe", "JPEG"),
        ("x.avif", "AVIF"),
        ("x.JP2", "JPEG2000"),
        ("x.tga", "TGA"),
        ("n01440764_10026", "JPEG"),
        ("no suffix", "PNG"),
    ],
)
def test_what_pillow_reads_is_read(tmp_path: Path, name: str, format: str, caplog: pytest.LogCaptureFixture) -> None:
    put(tmp_path / "a" / name, format=format)
    with Image.open(tmp_path / "a" / name) as image:
        expected = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    assert np.array_equal(open_dataset(tmp_path).train.images[0].numpy(), expected)
    assert not caplog.records


def test_a_file_that_would_start_another_program_is_refused(tmp_path: Path) -> None:
    """Pillow gives EPS to Ghostscript, which runs it, whatever the name."""
    classes(tmp_path, "a")
    (tmp_path / "a" / "x.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\n%%EOF\n")
    with pytest.raises(FastDMError, match=r"x\.png is not a readable image: it is not an image of a known kind"):
        open_dataset(tmp_path)


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    classes(tmp_path / "set", "a")
    path = tmp_path / "set" / "a" / "x.png"
    listener = socket.socket(socket.AF_UNIX)
    for make, kind in (
        (lambda: os.mkfifo(path), "a named pipe"),
        (lambda: path.symlink_to("/dev/zero"), "a device"),
        (lambda: listener.bind(str(path)), "a socket"),
    ):
        make()
        with pytest.raises(FastDMError, match=rf"x\.png is not a readable image: it is {kind}, not a regular file"):
            open_dataset(tmp_path / "set")
        with pytest.raises(FastDMError, match=rf"x\.png cannot be decoded \(it is {kind}"):
            pack(tmp_path / "set", tmp_path / "a.fdm", overwrite=True)
        packed = pack(tmp_path / "set", tmp_path / "a.fdm", on_error="skip", overwrite=True)
        assert packed.skipped[0][0] == "a/x.png"
        path.unlink()
    listener.close()


def test_other_sources_are_regular_files_too(tmp_path: Path) -> None:
    for suffix in (".npz", ".pt", ".fastdm"):
        os.mkfifo(tmp_path / f"pipe{suffix}")
        with pytest.raises(FastDMError, match="is a named pipe; it must be a regular file"):
            open_dataset(tmp_path / f"pipe{suffix}")


@pytest.mark.parametrize("deep", [DEEPEST, DEEPEST + 1])
def test_class_folders_have_a_stated_depth(tmp_path: Path, deep: int) -> None:
    put(tmp_path.joinpath("a", *"d" * deep, "x.png"))
    if deep <= DEEPEST:
        assert len(open_dataset(tmp_path).train) == 1
        return
    with pytest.raises(FastDMError, match=f"is more than {DEEPEST} folders below its class folder"):
        open_dataset(tmp_path)


def test_a_file_too_large_to_be_an_image_is_not_read(tmp_path: Path) -> None:
    classes(tmp_path, "a")
    with (tmp_path / "a" / "x.png").open("wb") as file:
        file.truncate(LARGEST_FILE + 1)  # a hole
    with pytest.raises(FastDMError, match=r"x\.png is not a readable image: it has 1073741825 bytes"):
        open_dataset(tmp_path)


def test_images_that_do_not_fit_into_memory_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    classes(tmp_path)
    monkeypatch.setattr("fastdm.data.arrays.free_memory", lambda: 4000)
    with pytest.raises(FastDMError, match=r"6 images of 3x16x16 take 4\.5 KiB of memory, of which 3\.9 KiB are free"):
        open_dataset(tmp_path)


# --- names -----------------------------------------------------------------------------------------------------------


def test_names_that_are_not_unicode_go_through_everything(tmp_path: Path) -> None:
    for name in (b"a\xff", b"b"):
        folder = os.fsencode(tmp_path / "set") + b"/" + name
        os.makedirs(folder)
        with open(folder + b"/\xfe.png", "wb") as file:
            Image.new("RGB", (16, 16), (len(name), 0, 0)).save(file, "PNG")
    expected = (os.fsdecode(b"a\xff"), "b")
    assert open_dataset(tmp_path / "set").class_names == expected
    pack(tmp_path / "set", tmp_path / "a.fdm", size=16).verify()
    packed = open_dataset(tmp_path / "a.fdm")
    assert packed.class_names == expected
    synthetic = random_selection(packed, 1)
    for suffix in (".safetensors", ".pt"):
        synthetic.save(tmp_path / f"set{suffix}")
        assert SyntheticSet.load(tmp_path / f"set{suffix}").class_names == expected
    synthetic.save_picture(tmp_path / "a.png")


def test_names_are_shown_as_text(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(tmp_path / "a" / "1.png")
    (tmp_path / "a" / "x\x1b[2J\n.txt").touch()
    open_dataset(tmp_path)
    assert r"a/x\x1b[2J\n.txt" in note(caplog)


def test_a_link_to_itself_is_named(tmp_path: Path) -> None:
    put(tmp_path / "a" / "1.png")
    (tmp_path / "a" / "x").symlink_to("x")
    with pytest.raises(FastDMError, match="a/x cannot be read: Too many levels of symbolic links"):
        open_dataset(tmp_path)


def test_kaggles_list_never_leads_out_of_its_folder(tmp_path: Path) -> None:
    classes(tmp_path / "train")
    put(tmp_path / "val" / "1.JPEG")
    (tmp_path / "LOC_val_solution.csv").write_text("ImageId,PredictionString\n../train/0/0,0 1\n")
    with pytest.raises(FastDMError, match="which is not a file in that folder"):
        find_images(tmp_path)


def test_kinds_that_pillow_does_not_read_are_counted_with_and_without_suffix(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(tmp_path / "a" / "1.png")
    for name in ("IMG_1.HEIC", "IMG_2"):
        (tmp_path / "a" / name).write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    open_dataset(tmp_path)
    assert "files that are not images that Pillow reads left out: 2 (such as" in note(caplog)


def test_an_exif_block_that_is_damaged_does_not_matter(tmp_path: Path) -> None:
    path = put(tmp_path / "a" / "1.jpg")
    expected = open_dataset(tmp_path).train.images
    data = path.read_bytes()
    path.write_bytes(data[:2] + b"\xff\xe1\0\x10Exif\0\0MM\0*\xff\xff\xff\xff" + data[2:])
    assert np.array_equal(open_dataset(tmp_path).train.images, expected)
