"""`fastdm list`."""

from collections.abc import Callable
from typing import Annotated

import typer

from fastdm.cli.flags import a_choice
from fastdm.cli.output import print_json
from fastdm.system.streams import on_terminal


def _networks() -> list[str]:
    from fastdm.networks.architectures import network_names

    return list(network_names())


def _datasets() -> list[str]:
    from fastdm.data.named import NAMES

    return list(NAMES)


def _augmentations() -> list[str]:
    from fastdm.augmentation import FAMILIES

    return list(FAMILIES)


def _presets() -> list[str]:
    from fastdm.condensation.presets import PRESETS

    return list(PRESETS)


KINDS: dict[str, Callable[[], list[str]]] = {
    "networks": _networks,
    "datasets": _datasets,
    "augmentations": _augmentations,
    "presets": _presets,
}


def catalogue(
    kind: Annotated[
        str,
        typer.Argument(
            parser=a_choice({name: name for name in KINDS}),
            metavar="KIND",
            help="networks, datasets, augmentations or presets.",
        ),
    ],
) -> None:
    """List the names that --model, --dataset, --dsa_strategy and --preset take."""
    names = KINDS[kind]()
    if not on_terminal():
        print_json({kind: names})
        return
    for name in names:
        typer.echo(name)
