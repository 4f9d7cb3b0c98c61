"""`fastdm export`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from fastdm.cli.flags import (
    SOURCE,
    BatchTrain,
    DataPath,
    Device,
    Epochs,
    ImageSize,
    LrNet,
    Normalised,
    OverwriteFile,
    PartitionOfFile,
    Seed,
)
from fastdm.cli.output import print_evaluation, print_json
from fastdm.errors import FastDMError
from fastdm.system.streams import on_terminal
from fastdm.system.text import printable

if TYPE_CHECKING:
    from fastdm.data.pool import Dataset as OpenDataset
    from fastdm.synthetic.synthetic_set import SyntheticSet


def export(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A condensed set: .safetensors, or the public code's .pt.")
    ],
    out: Annotated[
        Path,
        typer.Argument(metavar="OUT", help="A folder for PNG files, or a file that ends in .npz, .pt or .safetensors."),
    ],
    format_name: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="public|mtt|idc|safetensors",
            help="Layout of the file.  [default: what the suffix of OUT says]",
        ),
    ] = None,
    experiment: Annotated[
        int | None,
        typer.Option("--experiment", help="Which set of a .pt file, counted from 0.  [default: its only one]"),
    ] = None,
    overwrite: OverwriteFile = False,
    measure: Annotated[
        bool,
        typer.Option(
            "--measure", help="Also train networks on the set as it is and with 8-bit pixels, and print the accuracies."
        ),
    ] = False,
    dataset: Annotated[
        str | None,
        typer.Option("--dataset", help=f"Whose test images and class names to use: {SOURCE}"),
    ] = None,
    normalised: Normalised = None,
    partition: PartitionOfFile = None,
    data_path: DataPath = Path("data"),
    image_size: ImageSize = None,
    num_eval: Annotated[int, typer.Option("--num_eval", min=1, help="Networks trained on each of the two.")] = 5,
    epoch_eval_train: Epochs = 1000,
    lr_net: LrNet = 0.01,
    batch_train: BatchTrain = None,
    seed: Seed = 0,
    device: Device = None,
) -> None:
    """Write a condensed set for people without fastdm: PNG files in class folders, arrays, or the public code's file.

    Says how many pixel values 8 bits cannot hold and, with --measure, what that costs in accuracy.
    """
    from fastdm.applications.export import export as export_set
    from fastdm.applications.export import rounded
    from fastdm.data.sources import open_dataset
    from fastdm.evaluation.measure import measure as evaluate
    from fastdm.evaluation.measure import recorded_settings
    from fastdm.evaluation.protocol import Protocol
    from fastdm.networks.architectures import is_network
    from fastdm.synthetic.synthetic_set import check_compatible, dataset_name
    from fastdm.system.device import default_device

    data = None
    if dataset is not None or measure:
        data = open_dataset(dataset or dataset_name(file), data_path=data_path, image_size=image_size)
    synthetic = _load(file, experiment, data, normalised, partition)
    protocol = None
    if data is not None and measure:
        network, strategy = recorded_settings(synthetic, data)
        if not is_network(network):
            raise FastDMError(
                f"--measure trains the network that the set was condensed in, but fastdm does not know {network}; "
                "leave --measure out"
            )
        protocol = Protocol([network], strategy, num_eval, epoch_eval_train, lr_net, batch_train, seed)
        protocol.check(data)
        check_compatible(str(file), synthetic.num_classes, synthetic.images.shape[1:], data)
    exported = export_set(synthetic, out, format=cast(Any, format_name), overwrite=overwrite)
    if on_terminal():
        typer.echo(f"saved {printable(out)}: {exported}")
    else:
        print_json({"saved": str(out), "values": exported.values, "clipped": exported.clipped})
    if data is None or protocol is None:
        return
    for title, images in (("the set as it is", synthetic), ("with 8-bit pixels", rounded(synthetic.expand()))):
        evaluation = evaluate(images, data, protocol, default_device(device), progress=True)
        print_evaluation(title, evaluation, dataset=data.name)


def _load(
    file: Path,
    experiment: int | None,
    data: "OpenDataset | None",
    normalised: bool | None,
    partition: int | None,
) -> "SyntheticSet":
    from fastdm.synthetic.synthetic_set import SyntheticSet, number_of_sets

    sets = SyntheticSet.load_all(file, dataset=data, normalised=normalised, partition=partition)
    if experiment is None and len(sets) > 1:
        raise FastDMError(f"{file} holds {len(sets)} sets; say with --experiment which, counted from 0")
    if not 0 <= (experiment or 0) < len(sets):
        raise FastDMError(f"{file} holds {number_of_sets(sets)}, counted from 0; there is no set {experiment}")
    return sets[experiment or 0]
