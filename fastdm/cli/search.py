"""`fastdm search`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

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
from fastdm.cli.output import among_ranks, print_json, print_saved, print_table
from fastdm.errors import FastDMError
from fastdm.system.streams import on_terminal

_Ipc = Annotated[int, typer.Option("--ipc", min=1, help="Images per class of the proxy sets.")]

_Proxy = Annotated[str, typer.Option("--proxy", help="What to train on besides the whole set, joined by commas.")]

_Depth = Annotated[str, typer.Option("--depth", help="Depths of the ConvNets to search, joined by commas.")]

_Width = Annotated[str, typer.Option("--width", help="Their widths.")]

_Activation = Annotated[str, typer.Option("--activation", help="Their activations.")]

_Norm = Annotated[str, typer.Option("--norm", help="Their norms.")]

_Pool = Annotated[str, typer.Option("--pool", help="Their pooling.")]

_Networks = Annotated[
    int | None, typer.Option("--networks", help="How many of these networks to train, drawn at random.  [default: all]")
]

_Iterations = Annotated[int, typer.Option("--iterations", "--Iteration", help="Updates of the condensed pixels.")]

_LrImg = Annotated[float | None, typer.Option("--lr_img", help="Learning rate of the pixels.  [default: 1]")]

_NumEval = Annotated[int, typer.Option("--num_eval", min=1, help="Trainings of each architecture.")]

_EpochWholeSet = Annotated[int, typer.Option("--epoch_whole_set", min=1, help="Epochs on the whole set.")]

_SavePath = Annotated[Path, a_path("--save_path", "Folder for results.")]


def search(
    dataset: Dataset = "CIFAR10",
    ipc: _Ipc = 10,
    proxy: _Proxy = "condensed,random,early_stopped",
    depth: _Depth = "1,2,3,4",
    width: _Width = "32,64,128,256",
    activation: _Activation = "sigmoid,relu,leakyrelu",
    norm: _Norm = "none,batch,layer,instance,group",
    pool: _Pool = "none,max,avg",
    networks: _Networks = None,
    model: Model = None,
    iterations: _Iterations = 20_000,
    lr_img: _LrImg = None,
    batch_real: BatchReal = 256,
    num_eval: _NumEval = 1,
    epoch_eval_train: Epochs = 200,
    epoch_whole_set: _EpochWholeSet = 200,
    lr_net: LrNet = 0.01,
    batch_train: BatchTrain = None,
    data_path: DataPath = Path("data"),
    image_size: ImageSize = None,
    save_path: _SavePath = Path("search"),
    seed: Seed = 0,
    device: Device = None,
    precision: PrecisionOption = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Search the paper's 720 ConvNets on small proxy sets, and compare the proxies.

    Every network is trained on each proxy (a condensed set, random real images, the whole set stopped early) and on the
    whole set. Prints for each proxy the best network it finds and that network's accuracy after training on the whole
    set, the rank correlation with the whole set, the time, and the images stored. Writes SAVE_PATH/search.json and
    summary.json; --resume continues, also with further networks and proxies.
    """
    from fastdm.applications.architecture_search import RESULTS, SUMMARY, Search, run_search, search_space
    from fastdm.condensation.settings import Settings
    from fastdm.data.sources import open_dataset
    from fastdm.evaluation.protocol import Protocol
    from fastdm.system.device import default_device

    names = search_space(_axes(depth, width, activation, norm, pool), networks, seed)
    data, chosen = open_dataset(dataset, data_path=data_path, image_size=image_size), default_device(device)
    settings = Settings(
        ipc=ipc,
        iterations=iterations,
        batch_real=batch_real,
        lr_img=lr_img,
        network=model,
        seed=seed,
        precision=precision,  # type: ignore[arg-type]  # Settings checks it
    ).resolve(data, chosen)
    assert settings.strategy is not None
    protocol = Protocol(names, settings.strategy, num_eval, epoch_eval_train, lr_net, batch_train, seed)
    with among_ranks():
        found = run_search(
            Search(data, settings, protocol, names, several(proxy), epoch_whole_set),
            chosen,
            save_path=save_path,
            resume=resume,
            overwrite=overwrite,
            report=lambda record: None if on_terminal() else print_json({"dataset": data.name, **record}),
            progress=True,
        )
        _print_found(f"{data.name}: {len(names)} networks", data.name, found)
        print_saved(save_path / RESULTS)
        print_saved(save_path / SUMMARY)


def _axes(depth: str, width: str, activation: str, norm: str, pool: str) -> dict[str, Sequence[Any]]:
    """The values of every property that are searched."""
    words = {"activation": several(activation), "norm": several(norm), "pool": several(pool)}
    return {"depth": whole(depth), "width": whole(width), **words}


def _print_found(title: str, dataset: str, found: Mapping[str, Mapping[str, Any]]) -> None:
    """What each proxy is worth."""
    rows = []
    for name, of in found.items():
        if not on_terminal():
            print_json({"dataset": dataset, "proxy": name, **of})
        correlation = "none" if of["spearman"] is None else f"{of['spearman']:.2f}"
        numbers = (f"{100 * of['accuracy']:.2f}", correlation, f"{of['seconds']:.0f}", f"{of['images']:,}")
        rows.append([name, of["best"], *numbers])
    columns = ["proxy", "best network", "its accuracy %", "rank correlation", "seconds", "images"]
    print_table(title, columns, rows)


def whole(text: str) -> list[int]:
    """The whole numbers that "1,2" means."""
    words = several(text)
    if not all(word.isdecimal() for word in words):
        raise FastDMError(f"{text!r} must be whole numbers, joined by commas")
    return [int(word) for word in words]
