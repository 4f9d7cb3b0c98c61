"""`fastdm continual`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from fastdm.cli.flags import (
    BatchReal,
    BatchTrain,
    DataPath,
    Dataset,
    Device,
    Epochs,
    ImageSize,
    LrNet,
    Model,
    Overwrite,
    PrecisionOption,
    Resume,
    Seed,
    a_path,
    several,
)
from fastdm.cli.output import among_ranks, percent, print_json, print_saved, print_table
from fastdm.system.streams import on_terminal

WORDS = {"dm": "DM", "random": "random", "herding": "herding"}


_Method = Annotated[
    str,
    typer.Option(
        "--method", help="How images are made or chosen: DM, random or herding; several are joined by commas."
    ),
]

_Steps = Annotated[
    int, typer.Option("--steps", min=1, help="Steps in which the classes arrive, the same number in each.")
]

_Ipc = Annotated[int, typer.Option("--ipc", min=1, help="Images per class in the memory.")]

_Orders = Annotated[
    int, typer.Option("--orders", min=1, help="How many orders of the classes to average over; they are the paper's.")
]

_Iterations = Annotated[int, typer.Option("--iterations", "--Iteration", help="Updates of the pixels in each step.")]

_LrImg = Annotated[float | None, typer.Option("--lr_img", help="Learning rate of the pixels.  [default: 1]")]

_DsaStrategy = Annotated[
    str | None,
    typer.Option("--dsa_strategy", "--strategy", help="Augmentations joined by _, or none.  [default: the data set's]"),
]

_NumEval = Annotated[int, typer.Option("--num_eval", min=1, help="Networks trained on the memory after each step.")]

_HerdingEpochs = Annotated[
    int, typer.Option("--herding_epochs", min=1, help="Epochs of the network whose features herding looks at.")
]

_SavePath = Annotated[Path, a_path("--save_path", "Folder for results, sets and the plot.")]


def continual(
    dataset: Dataset = "CIFAR100",
    method: _Method = "DM",
    steps: _Steps = 5,
    ipc: _Ipc = 20,
    orders: _Orders = 5,
    model: Model = None,
    iterations: _Iterations = 20_000,
    lr_img: _LrImg = None,
    batch_real: BatchReal = 256,
    dsa_strategy: _DsaStrategy = None,
    num_eval: _NumEval = 3,
    epoch_eval_train: Epochs = 1000,
    lr_net: LrNet = 0.01,
    batch_train: BatchTrain = None,
    herding_epochs: _HerdingEpochs = 20,
    data_path: DataPath = Path("data"),
    image_size: ImageSize = None,
    save_path: _SavePath = Path("continual"),
    seed: Seed = 0,
    device: Device = None,
    precision: PrecisionOption = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Continual learning: classes arrive in steps, and networks train on a memory of a few images per class.

    The paper's protocol: in every step the new classes are condensed (DM), or real images of them are chosen (random,
    herding); networks are then trained on the memory from scratch and tested on all classes so far. Repeated for
    several orders of the classes. Writes SAVE_PATH/continual.json and continual.png; --resume continues, also with
    further methods and orders.
    """
    from fastdm.applications.continual import PLOT, RESULTS, Continual, run_continual, table
    from fastdm.condensation.settings import Settings
    from fastdm.data.sources import open_dataset
    from fastdm.evaluation.protocol import Protocol
    from fastdm.system.device import default_device

    data, chosen = open_dataset(dataset, data_path=data_path, image_size=image_size), default_device(device)
    settings = Settings(
        ipc=ipc,
        iterations=iterations,
        batch_real=batch_real,
        lr_img=lr_img,
        strategy=dsa_strategy,
        network=model,
        seed=seed,
        precision=precision,  # type: ignore[arg-type]  # Settings checks it
    ).resolve(data, chosen)
    assert settings.network is not None
    assert settings.strategy is not None
    protocol = Protocol([settings.network], settings.strategy, num_eval, epoch_eval_train, lr_net, batch_train, seed)
    methods = [WORDS.get(each.lower(), each) for each in several(method)]
    what = Continual(data, settings, protocol, methods, steps, orders, herding_epochs)
    with among_ranks():
        records = run_continual(
            what,
            chosen,
            save_path=save_path,
            resume=resume,
            overwrite=overwrite,
            report=lambda record: None if on_terminal() else print_json({"dataset": data.name, **record}),
            progress=True,
        )
        _print_found(data.name, table(records))
        print_saved(save_path / RESULTS)
        print_saved(save_path / PLOT)


def _print_found(dataset: str, found: Mapping[str, Mapping[int, tuple[float, float]]]) -> None:
    """A row of accuracies for every method, a column for every number of classes."""
    classes = sorted({number for steps in found.values() for number in steps})
    rows = [[name, *(percent(*of[number]) if number in of else "" for number in classes)] for name, of in found.items()]
    title = f"{dataset}: accuracy % over the orders, by the number of classes"
    print_table(title, ["method", *map(str, classes)], rows)
