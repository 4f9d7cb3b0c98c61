"""`fastdm evaluate`."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from fastdm.cli.flags import (
    NETWORKS,
    SOURCE,
    BatchTrain,
    Checks,
    Config,
    DataPath,
    Device,
    Epochs,
    EvalMode,
    ImageSize,
    LrNet,
    Normalised,
    PartitionOfFile,
    ProtocolName,
    Seed,
)
from fastdm.cli.output import among_ranks, print_evaluation, print_saved
from fastdm.errors import FastDMError
from fastdm.system.files import user_path

if TYPE_CHECKING:
    from fastdm.data.pool import Dataset as OpenDataset
    from fastdm.evaluation.outcome import Evaluation
    from fastdm.networks.trained import NetworkPool


_File = Annotated[
    Path,
    typer.Argument(parser=user_path, metavar="FILE", help="A condensed set: .safetensors, or a public .pt."),
]

_Dataset = Annotated[
    str | None,
    typer.Option("--dataset", help=f"Whose test images to use: {SOURCE}  [default: the one that FILE names]"),
]

_Model = Annotated[
    str | None,
    typer.Option(
        "--model", "--network", help=f"Network to train: {NETWORKS}  [default: what the set was condensed with]"
    ),
]

_NumEval = Annotated[int, typer.Option("--num_eval", min=1, help="Networks trained on each set.")]

_Labels = Annotated[
    str,
    typer.Option(
        "--labels",
        metavar="hard|soft",
        help="What to train for: hard labels; or soft ones that the networks of --pool give, then random real images "
        "with such labels are evaluated too.",
    ),
]

_Pool = Annotated[Path | None, typer.Option("--pool", help="Trained networks, a file that `fastdm pool` wrote.")]

_DsaStrategy = Annotated[
    str | None,
    typer.Option(
        "--dsa_strategy",
        "--strategy",
        help="Augmentations joined by _, or none.  [default: what the set was condensed with]",
    ),
]

_Experiment = Annotated[
    int | None,
    typer.Option("--experiment", help="Which set of a .pt file, counted from 0.  [default: all, then pooled]"),
]

_Baselines = Annotated[
    bool, typer.Option("--baselines", help="Also evaluate as many random real images, and the whole set.")
]

_EpochWholeSet = Annotated[
    int | None,
    typer.Option(
        "--epoch_whole_set",
        min=1,
        help="Epochs of the whole-set baseline, whose epochs have far more updates than those of a condensed set.  "
        "[default: 200, as one trains on a whole set; at most epoch_eval_train]",
    ),
]

_Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        "-o",
        parser=user_path,
        metavar="FILE",
        help="Write all that was measured as JSON, accuracies per class and confusion matrices too.",
    ),
]


def evaluate(
    file: _File,
    dataset: _Dataset = None,
    model: _Model = None,
    eval_mode: EvalMode = "SS",
    num_eval: _NumEval = 20,
    epoch_eval_train: Epochs = 1000,
    lr_net: LrNet = 0.01,
    batch_train: BatchTrain = None,
    protocol_name: ProtocolName = "dm",
    checks: Checks = 1,
    labels: _Labels = "hard",
    pool: _Pool = None,
    dsa_strategy: _DsaStrategy = None,
    data_path: DataPath = Path("data"),
    image_size: ImageSize = None,
    normalised: Normalised = None,
    partition: PartitionOfFile = None,
    experiment: _Experiment = None,
    baselines: _Baselines = False,
    epoch_whole_set: _EpochWholeSet = None,
    out: _Out = None,
    seed: Seed = 0,
    device: Device = None,
    config: Config = None,
) -> None:
    """Train networks on a condensed set; print their accuracy on the data set's test images.

    Set number e of a .pt file is evaluated with seed + e, as condense does it. Processes that torchrun or srun started
    share the networks.
    """
    from fastdm.applications import measured_file
    from fastdm.evaluation.measure import check_recorded, recorded_settings
    from fastdm.evaluation.protocol import Protocol
    from fastdm.networks.architectures import evaluation_pool
    from fastdm.system.device import default_device

    if out is not None:
        measured_file.check_writable(out)
    data = _dataset_of(file, dataset, data_path, image_size)
    sets = measured_file.load_sets(file, data, experiment, normalised, partition)
    network, strategy = recorded_settings(next(iter(sets.values())), data)
    if model is None:
        check_recorded(network)
    protocol = Protocol(
        networks=evaluation_pool(eval_mode, model or network),
        strategy=dsa_strategy or strategy,
        num_eval=num_eval,
        epochs=epoch_eval_train,
        lr_net=lr_net,
        batch_train=batch_train,
        seed=seed,
        name=cast(Any, protocol_name),
        checks=checks,
    )
    measure = lambda: measured_file.measured_sets(  # noqa: E731
        file,
        sets,
        data,
        protocol,
        default_device(device),
        labels=labels,
        pool=_loaded(pool),
        several=len(sets) > 1 or experiment is not None,
        baselines=baselines,
        whole_set_epochs=epoch_whole_set,
    )
    _print_measured(measure, data, out)


def _loaded(pool: Path | None) -> "NetworkPool | None":
    from fastdm.networks.trained import NetworkPool

    return None if pool is None else NetworkPool.load(pool)


def _print_measured(
    measure: Callable[[], Iterable[tuple[str, "Evaluation"]]], data: "OpenDataset", out: Path | None
) -> None:
    """Print each evaluation as it is made, and write all so far to `out`; the ranks make them together."""
    from fastdm.applications import measured_file

    measured = {}
    with among_ranks() as ranks:
        for title, evaluation in measure():
            measured[title] = evaluation
            print_evaluation(title, evaluation, dataset=data.name)
            if out is not None and ranks.first:
                measured_file.write_measured(out, data, measured)  # the next takes long, and may be interrupted
        if out is not None:
            print_saved(out)


def _dataset_of(file: Path, named: str | None, data_path: Path, image_size: int | None) -> "OpenDataset":
    """The data set named, by default the one that the file of a condensed set names."""
    from fastdm.data.sources import open_dataset
    from fastdm.synthetic.synthetic_set import dataset_name

    if named is not None:
        return open_dataset(named, data_path=data_path, image_size=image_size)
    recorded = dataset_name(file)
    try:
        return open_dataset(recorded, data_path=data_path, image_size=image_size)
    except FastDMError as error:
        raise FastDMError(
            f"{file} was condensed from data set {recorded}; name with --dataset where that is ({error})"
        ) from error
