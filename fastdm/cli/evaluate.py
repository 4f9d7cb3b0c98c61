"""`fastdm evaluate`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from fastdm.cli.options import (
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
    ProtocolName,
    Seed,
)
from fastdm.cli.output import print_evaluation
from fastdm.errors import FastDMError, one_of
from fastdm.system.files import user_path

if TYPE_CHECKING:
    from fastdm.data.pool import Dataset as OpenDataset

WHOLE_SET_EPOCHS = 200


def evaluate(
    file: Annotated[
        Path,
        typer.Argument(parser=user_path, metavar="FILE", help="A condensed set: .safetensors, or a public .pt."),
    ],
    dataset: Annotated[
        str | None,
        typer.Option("--dataset", help=f"Whose test images to use: {SOURCE}  [default: the one that FILE names]"),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", "--network", help=f"Network to train: {NETWORKS}  [default: what the set was condensed with]"
        ),
    ] = None,
    eval_mode: EvalMode = "SS",
    num_eval: Annotated[int, typer.Option("--num_eval", min=1, help="Networks trained on each set.")] = 20,
    epoch_eval_train: Epochs = 1000,
    lr_net: LrNet = 0.01,
    batch_train: BatchTrain = None,
    protocol_name: ProtocolName = "dm",
    checks: Checks = 1,
    labels: Annotated[
        str,
        typer.Option("--labels", help="hard; or soft, of the networks of --pool, then of random images too."),
    ] = "hard",
    pool: Annotated[
        Path | None, typer.Option("--pool", help="Trained networks, a file that `fastdm pool` wrote.")
    ] = None,
    dsa_strategy: Annotated[
        str | None,
        typer.Option(
            "--dsa_strategy",
            "--strategy",
            help="Augmentations joined by _, or none.  [default: what the set was condensed with]",
        ),
    ] = None,
    data_path: DataPath = Path("data"),
    image_size: ImageSize = None,
    experiment: Annotated[
        int | None,
        typer.Option("--experiment", help="Which set of a .pt file, counted from 0.  [default: all, then pooled]"),
    ] = None,
    baselines: Annotated[
        bool, typer.Option("--baselines", help="Also evaluate as many random real images, and the whole set.")
    ] = False,
    epoch_whole_set: Annotated[
        int | None,
        typer.Option(
            "--epoch_whole_set",
            min=1,
            help="Epochs of the whole-set baseline, whose epochs have far more updates than those of a condensed set.  "
            f"[default: {WHOLE_SET_EPOCHS}, as one trains on a whole set; at most epoch_eval_train]",
        ),
    ] = None,
    seed: Seed = 0,
    device: Device = None,
    config: Config = None,
) -> None:
    """Train networks on a condensed set; print their accuracy on the data set's test images.

    Set number e of a .pt file is evaluated with seed + e, as condense does it.
    """
    from dataclasses import replace

    from fastdm.evaluation.measure import measure, measure_soft, recorded_settings
    from fastdm.evaluation.protocol import Evaluation, Protocol
    from fastdm.networks.architectures import evaluation_pool
    from fastdm.networks.trained import NetworkPool
    from fastdm.synthetic.initial import random_selection, whole_set
    from fastdm.synthetic.synthetic_set import SyntheticSet
    from fastdm.system.device import default_device

    data = _dataset_of(file, dataset, data_path, image_size)
    if experiment is None:
        sets = dict(enumerate(SyntheticSet.load_all(file, dataset=data)))
    else:
        sets = {experiment: SyntheticSet.load(file, experiment=experiment, dataset=data)}
    first = next(iter(sets.values()))
    chosen_device = default_device(device)
    network, strategy = recorded_settings(first, data)
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

    one_of("labels", labels, ("hard", "soft"))
    soft, teachers = labels == "soft", None if pool is None else NetworkPool.load(pool)
    several = len(sets) > 1 or experiment is not None
    candidates: list[tuple[str, Any, Protocol]] = [
        (f"{file}, set {number}" if several else str(file), synthetic, replace(protocol, seed=seed + number))
        for number, synthetic in sets.items()
    ]
    if baselines:
        few_epochs = replace(protocol, epochs=epoch_whole_set or min(WHOLE_SET_EPOCHS, epoch_eval_train))
        candidates.append(("random real images", random_selection(data, first.ipc, seed), protocol))
        candidates.append(("whole set", whole_set(data), few_epochs))
    evaluations = []
    for title, candidate, how in candidates:
        if soft and isinstance(candidate, SyntheticSet):
            evaluations.append(measure_soft(candidate, data, how, chosen_device, teachers, progress=True))
        else:
            evaluations.append(measure(candidate, data, how, chosen_device, progress=True))
        print_evaluation(title, evaluations[-1], dataset=data.name)
        if (random := evaluations[-1].random) is not None:
            print_evaluation(f"{title}: random real images, labels of the same networks", random, dataset=data.name)
        if len(evaluations) == len(sets) > 1:
            print_evaluation(f"{file}, all {len(sets)} sets", Evaluation.pooled(evaluations), dataset=data.name)


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
