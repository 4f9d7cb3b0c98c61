"""Presets: what they hold, and what they refuse."""

import dataclasses

import pytest

from fastdm.condensation.presets import PRESETS, find_preset
from fastdm.condensation.settings import Settings
from fastdm.data.unread import unread_dataset
from fastdm.errors import FastDMError
from fastdm.networks.architectures import default_network


@pytest.mark.parametrize("name", PRESETS)
def test_the_settings_of_a_preset_are_settings(name: str) -> None:
    preset = find_preset(name)
    settings = Settings(**preset.settings)
    assert settings.network == default_network(preset.image_shape)
    assert settings.ipc == 10
    assert preset.images // preset.classes >= settings.batch_real


def test_those_of_cifar_are_the_papers() -> None:
    settings = Settings(**PRESETS["cifar10"].settings)
    assert settings == dataclasses.replace(Settings(ipc=10), network="ConvNet")


def test_a_preset_takes_images_of_its_size_only() -> None:
    find_preset("imagenet64").check("imagenet64", unread_dataset(10, 100, (3, 64, 64), "ten"))
    with pytest.raises(FastDMError, match="the images of ten are 3x32x32, but preset imagenet64 is for 3x64x64"):
        find_preset("imagenet64").check("imagenet64", unread_dataset(10, 100, (3, 32, 32), "ten"))
    with pytest.raises(FastDMError, match="unknown preset 'imagenet46'; did you mean imagenet64"):
        find_preset("imagenet46")
