"""`fastdm pool`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from fastdm.cli.flags import Cutmix, DataPath, Dataset, Device, ImageSize, Model, PrecisionOption, Seed
from fastdm.cli.output import among_ranks
from fastdm.system.streams import on_terminal
from fastdm.system.text import printable

if TYPE_CHECKING:
    from fastdm.networks.trained import NetworkPool


def pool(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The file to write; it ends in .safetensors.")],
    dataset: Dataset = "CIFAR10",
    model: Model = None,
    networks: Annotated[int, typer.Option("--networks", min=1, help="Networks to train.")] = 5,
    epochs: Annotated[int, typer.Option("--epochs", min=1, help="Epochs of each.")] = 60,
    states: Annotated[
        int | None,
        typer.Option(
            "--states", min=2, help="Snapshots of each, its start included.  [default: epochs + 1, at least 13]"
        ),
    ] = None,
    lr_net: Annotated[float, typer.Option("--lr_net", help="Learning rate.")] = 0.01,
    batch_train: Annotated[int, typer.Option("--batch_train", help="Batch size.")] = 64,
    cutmix: Cutmix = True,
    data_path: DataPath = Path("data"),
    image_size: ImageSize = None,
    seed: Seed = 0,
    device: Device = None,
    precision: PrecisionOption = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a training that was interrupted.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Start over where FILE already exists.")] = False,
) -> None:
    """Train networks on a data set and keep snapshots of them, for fastdm condense --networks trained.

    Several processes that torchrun or srun started share the networks.
    """
    from fastdm.applications.pool import train_pool

    with among_ranks():
        trained = train_pool(
            dataset,
            networks=networks,
            epochs=epochs,
            states=states,
            network=model,
            lr_net=lr_net,
            batch_train=batch_train,
            cutmix=cutmix,
            seed=seed,
            save_path=file,
            resume=resume,
            overwrite=overwrite,
            data_path=data_path,
            image_size=image_size,
            device=device,
            precision=cast(Any, precision),
            progress=True,
        )
        _print_pool(file, trained)


def _print_pool(file: Path, trained: "NetworkPool") -> None:
    if on_terminal():
        tested = ", ".join(f"{100 * accuracy:.1f} %" for accuracy in trained.accuracies) or "not measured"
        networks_of_states = f"{trained.networks} networks of {trained.states} states"
        typer.echo(f"saved {printable(file)}: {networks_of_states}, test accuracy {tested}")
    else:
        print(json.dumps({"saved": str(file), **trained.summary()}))
