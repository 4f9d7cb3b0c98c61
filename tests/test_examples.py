"""The examples run, at small settings."""

from pathlib import Path

import pytest

import fastdm
from examples import imagenet_stand_in, own_architecture, own_folder, plain_training
from examples.existing_code import after, before


def test_a_condensed_set_trains_a_plain_network(tmp_path: Path) -> None:
    fastdm.random_selection("digits", ipc=10).save(tmp_path / "set.safetensors")
    # Ten real images of each digit: far above chance, a tenth.
    assert plain_training.main(str(tmp_path / "set.safetensors"), epochs=20) > 0.5


def test_own_architecture_is_evaluated(tmp_path: Path) -> None:
    fastdm.random_selection("digits", ipc=10).save(tmp_path / "set.safetensors")
    assert 0 <= own_architecture.main(str(tmp_path / "set.safetensors"), networks=1, epochs=2) <= 1


def test_own_folder_is_condensed_and_exported(tmp_path: Path) -> None:
    exported = own_folder.main(out=str(tmp_path), iterations=2, size=8)
    assert fastdm.open_dataset(exported).class_names == ("discs", "squares")


def test_a_stand_in_for_imagenet_is_packed(tmp_path: Path) -> None:
    folder = imagenet_stand_in.main(tmp_path / "imagenet", classes=3, each=4, tests=2)
    data = fastdm.open_dataset(fastdm.pack(folder, tmp_path / "set.fastdm", size=8).path)
    assert (data.num_classes, data.image_shape, len(data.train)) == (3, (3, 8, 8), 12)
    assert data.test is not None
    assert len(data.test) == 6


@pytest.mark.parametrize("script", [before, after], ids=["before", "after"])
def test_existing_code_runs(script: object) -> None:
    losses = script.main(iterations=4)  # type: ignore[attr-defined]
    assert losses[-1] < losses[0]


def test_one_line_replaces_the_augmentation() -> None:
    texts = [Path(str(module.__file__)).read_text().splitlines() for module in (before, after)]
    changed = [(old, new) for old, new in zip(*texts, strict=True) if old != new]
    assert changed[1:] == [
        (
            "from examples.existing_code.augmentation import DiffAugment, ParamDiffAug",
            "from fastdm import DiffAugment, ParamDiffAug",
        )
    ]
    assert changed[0][0].startswith("python -m")
