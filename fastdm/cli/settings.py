"""What the flags of a command say of a condensation: its data set and its settings."""

import dataclasses
from typing import TYPE_CHECKING

import typer

from fastdm.errors import FastDMError

if TYPE_CHECKING:
    from fastdm.condensation.settings import Settings
    from fastdm.data.pool import Dataset
    from fastdm.networks.trained import NetworkPool

SETTINGS = {"iteration": "iterations", "dsa_strategy": "strategy", "model": "network"}
"""Flags whose setting has another name."""


def given_settings(context: typer.Context, data: "Dataset", pool: "NetworkPool | None") -> "Settings":
    """The flags that are settings: those that are not given have the recipe's values."""
    from fastdm.condensation.loop import matching_pool
    from fastdm.condensation.recipes import recipe_settings
    from fastdm.condensation.settings import Settings

    flags = context.params
    names = {field.name for field in dataclasses.fields(Settings)}
    given = {
        name: value
        for flag, value in flags.items()
        if (name := SETTINGS.get(flag, flag)) in names and is_given(context, flag)
    }
    settings = dataclasses.replace(recipe_settings(flags["recipe"], data, flags["ipc"]), **given)
    return matching_pool(settings, pool, data)


def named_dataset(context: typer.Context) -> str | None:
    """The data set that the command line names, as an argument or as --dataset, or else the preset; or None."""
    from fastdm.condensation.presets import find_preset

    source, flag, preset = (context.params.get(name) for name in ("source", "dataset", "preset"))
    if is_given(context, "dataset"):
        if source not in (None, flag):
            raise FastDMError(f"{source!r} and --dataset {flag} are two data sets; name one")
        return str(flag)
    return source or (find_preset(preset).dataset if preset else None)


def is_given(context: typer.Context, flag: str) -> bool:
    """Whether the command line, a configuration or a preset names the flag, as opposed to its default."""
    source = context.get_parameter_source(flag)
    return source is not None and source.name != "DEFAULT"
