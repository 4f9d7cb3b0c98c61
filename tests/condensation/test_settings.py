"""What a condensation is asked for: which values are settings, and what each that is none is told."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fastdm
from fastdm.condensation.settings import Settings
from fastdm.data.pool import Dataset
from fastdm.data.unread import unread_dataset
from fastdm.errors import FastDMError
from tests.oracles import random_dataset

SMALL: dict[str, Any] = {"ipc": 1, "iterations": 6, "batch_real": 8, "network": "ConvNetD1", "device": "cpu"}


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return random_dataset([12, 10], shape=(3, 8, 8))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ipc": 0}, "ipc is 0; it must be a whole number of at least 1"),
        ({"ipc": 11}, "ipc is 11, but class 'class 1' of random has 10 images to start from"),
        ({"batch_real": 11, "small_classes": "error"}, "use a batch_real of at most 10"),
        ({"iterations": -1}, "iterations is -1"),
        ({"lr_img": -1.0}, "lr_img is -1.0; it must be above 0"),
        ({"lr_img": float("inf")}, "lr_img is inf; it must be above 0 and finite"),
        ({"lr_img": "1"}, "lr_img is '1'; it must be a number"),
        ({"lr_img": 1e39}, r"lr_img is 1e\+39; it must be above 0 and finite, as a number of 32 bits"),
        ({"lr_img": 1e-50}, "lr_img is 1e-50; it must be above 0 and finite, as a number of 32 bits"),
        ({"ce_weight": 1e39}, r"ce_weight is 1e\+39; it must be at least 0 and finite, as a number of 32 bits"),
        ({"momentum": 1.0}, "momentum is 1.0"),
        ({"seed": 1.5}, "seed is 1.5; it must be a whole number of at least 0"),
        ({"ipc": True}, "ipc is True; it must be a whole number"),
        ({"save_every": 0}, "save_every is 0; it must be a whole number of at least 1"),
        ({"picture_every": -1}, "picture_every is -1; it must be a whole number of at least 1"),
        ({"save_every": "5"}, "save_every is '5'; it must be a whole number of at least 1"),
        ({"save_minutes": "5"}, "save_minutes is '5'; it must be a number"),
        ({"chunk_memory": "1G"}, "chunk_memory is '1G'; it must be a number"),
        ({"chunk_memory": float("nan")}, "chunk_memory is nan; it must be a number of bytes"),
        ({"compile": "no"}, "compile is 'no'; it must be one of False, True"),
        ({"resume": "no"}, "resume is 'no'; it must be one of False, True"),
        ({"progress": "no"}, "progress is 'no'; it must be one of False, True"),
        ({"verbose": "no"}, "verbose is 'no'; it must be one of False, True"),
        ({"tensorboard": "no"}, "tensorboard is 'no'; it must be one of False, True"),
        ({"deterministic": "no"}, "deterministic is 'no'; it must be one of False, True"),
        ({"profile": (0, 1), "save_path": "run"}, "profile is a tuple; it must be a range"),
        ({"settings": {"ipc": 2}}, "settings is a dict; it must be fastdm.Settings"),
        ({"device": []}, r"device \[\] is unknown; it must be cpu, cuda"),
        ({"callback": 3}, "callback is a int; it must be a function, or None"),
        ({"save_path": 3}, "a path is a int; it must be a str or a Path"),
        ({"strategy": ["flip"]}, "the strategy is a list; it must be a str of families"),
        ({"init": torch.zeros(2, 3, 8, 8)}, "init is a Tensor; it must be one of 'real', 'noise'"),
        ({"init": np.zeros(3)}, r"init is array\(\[0., 0., 0.\]\); it must be one of 'real', 'noise'"),
        ({"ipc": 2, "partition": 4}, "ipc is 2 with 16 images in each, .* use a smaller partition, or init 'noise'"),
        ({"device": "meta"}, "device 'meta' is neither a CPU nor a CUDA device"),
        ({"init": "zeros"}, "init is 'zeros'; it must be one of 'real', 'noise'"),
        ({"precision": "fp8"}, "precision is 'fp8'; it must be one of"),
        ({"precision": "tf32"}, "precision 'tf32' needs a GPU"),
        ({"network": "ConvNeXt"}, "unknown network 'ConvNeXt'"),
        ({"strategy": "blur"}, "unknown augmentation 'blur'"),
        ({"device": "cuda:99"}, "device 'cuda:99' cannot be used here"),
        ({"backend": "triton"}, "backend 'triton' is not available"),
        ({"backend": "cutlass"}, "backend is 'cutlass'; it must be"),
        ({"learning_rate": 3}, "unknown setting 'learning_rate'; choose one of ipc, iterations"),
        ({"chunk_memory": 75_000, "precision": "bf16"}, "batch_real of at most [1-7] would fit"),
        ({"chunk_memory": 1000}, "1 images per class do not fit"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_bad_settings(changes: dict[str, Any], message: str, dataset: Dataset) -> None:
    with pytest.raises(FastDMError, match=message):
        fastdm.condense(dataset, **{**SMALL, **changes})


def test_numbers_of_numpy_are_numbers(dataset: Dataset, tmp_path: Path) -> None:
    changes = {"ipc": np.int64(2), "lr_img": np.float32(0.5), "seed": np.uint8(3), "chunk_memory": np.int64(1 << 30)}
    result = fastdm.condense(dataset, **{**SMALL, **changes}, save_path=tmp_path)
    assert len(result.images) == 2 * 2
    assert json.loads((tmp_path / "settings.json").read_text())["lr_img"] == 0.5


def test_truth_values_of_numpy_are_pythons(dataset: Dataset, tmp_path: Path) -> None:
    fastdm.condense(dataset, **SMALL, clamp=np.True_, deterministic=np.False_, save_path=tmp_path)
    settings = json.loads((tmp_path / "settings.json").read_text())
    assert settings["clamp"] is True
    assert settings["deterministic"] is False


def test_settings_hold_unless_an_argument_says_otherwise(dataset: Dataset) -> None:
    settings = Settings(ipc=3, iterations=0, batch_real=8, network="ConvNetD1")
    assert fastdm.condense(dataset, settings=settings).ipc == 3
    assert fastdm.condense(dataset, 2, settings=settings).ipc == 2


def test_an_empty_strategy_is_none(dataset: Dataset) -> None:
    empty, none, default = (fastdm.condense(dataset, **SMALL, strategy=text).images for text in ("", "none", None))
    assert torch.equal(empty, none)
    assert not torch.equal(empty, default)


def test_the_default_network_of_large_images() -> None:
    large = random_dataset([2, 2], shape=(1, 600, 520))
    assert Settings().resolve(large, torch.device("cpu")).network == "ConvNetD6"


def resolved(name: str, **options: Any) -> Settings:
    return Settings(**options).resolve(unread_dataset(10, 5000, (3, 32, 32), name), torch.device("cpu"))


def test_the_learning_rate_that_is_left_open() -> None:
    """That of the public code's commands; in units of [0, 1] 0.02 for every image of a class, at least 0.05."""
    assert resolved("CIFAR10", ipc=99).lr_img == 1
    assert resolved("CIFAR10", ipc=100).lr_img == 10
    assert resolved("CIFAR100", ipc=100).lr_img == 1
    assert [resolved("CIFAR10", ipc=ipc, clamp=True).lr_img for ipc in (1, 2, 3, 100)] == [0.05, 0.05, 0.06, 2]
    assert resolved("CIFAR10", ipc=100, clamp=True, lr_img=3).lr_img == 3


def test_pixels_are_kept_in_their_range_with_a_partition_or_trained_networks() -> None:
    assert not resolved("CIFAR10").clamp
    assert resolved("CIFAR10", partition=2).clamp
    assert resolved("CIFAR10", networks="trained").clamp
    assert not resolved("CIFAR10", networks="trained", partition=2, clamp=False).clamp


def test_what_has_no_effect_does_not_keep_a_run_from_being_resumed() -> None:
    assert resolved("CIFAR10", ce_ahead=3).resume_key() == resolved("CIFAR10").resume_key()
    one, other = (resolved("CIFAR10", networks="trained", ce_weight=1, ce_ahead=ahead).resume_key() for ahead in (3, 6))
    assert one != other
