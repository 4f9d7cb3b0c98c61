"""`fastdm plan`."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from fastdm.cli import flags as flag
from fastdm.cli.condense import protocol_of
from fastdm.cli.output import print_json, print_table
from fastdm.cli.settings import given_settings, is_given, named_dataset
from fastdm.errors import FastDMError
from fastdm.system.files import user_path
from fastdm.system.streams import on_terminal
from fastdm.system.text import duration_text, size_text

if TYPE_CHECKING:
    from fastdm.condensation.calibration import Rate
    from fastdm.condensation.forecast import Forecast
    from fastdm.condensation.settings import Settings
    from fastdm.data.pool import Dataset
    from fastdm.networks.trained import NetworkPool

PLACES: tuple[Literal["device", "host"], ...] = ("device", "host")

COLUMNS = (
    "device", "ranks", "residence", "classes at a time", "on the device", "on the host", "s per iteration",
    "iterations", "evaluation",
)  # fmt: skip


_Classes = Annotated[int | None, typer.Option("--classes", help="Classes of a data set that is not here.")]

_Images = Annotated[int | None, typer.Option("--images", help="Its training images, in all.")]

_Size = Annotated[int | None, typer.Option("--size", help="The side of its images.")]

_Channels = Annotated[int, typer.Option("--channels", help="Their channels.")]

_Device = Annotated[
    list[str] | None,
    typer.Option(
        "--device",
        metavar="DEVICE",
        help="cpu, cuda, …, or a GPU that is not here: H100, H200, A100-40, A100-80, L40S, RTX3090, RTX4090; "
        "several: give it several times.  [default: a GPU if there is one]",
    ),
]

_Ranks = Annotated[
    list[int],
    typer.Option("--ranks", metavar="<int>", help="Processes that share the classes; several: give it several times."),
]

_PoolNetworks = Annotated[int, typer.Option("--pool_networks", min=1, help="Networks of a pool that is not here.")]

_PoolStates = Annotated[int, typer.Option("--pool_states", min=2, help="Snapshots of each.")]

_Calibrate = Annotated[
    bool,
    typer.Option("--calibrate/--no_calibrate", help="Time a device that is here, for about 10 s; else no times."),
]

_Markdown = Annotated[bool, typer.Option("--markdown", help="Print the plans as a table in Markdown.")]


def plan(
    ctx: typer.Context,
    source: flag.Source = None,
    dataset: flag.Dataset = "CIFAR10",
    preset: flag.Preset = None,
    classes: _Classes = None,
    images: _Images = None,
    size: _Size = None,
    channels: _Channels = 3,
    device: _Device = None,
    ranks: _Ranks = [1],  # noqa: B006
    model: flag.Model = None,
    ipc: flag.Ipc = flag.DEFAULT_IPC,
    batch_real: flag.BatchReal = 256,
    iteration: flag.Iteration = 20_000,
    precision: flag.PrecisionOption = None,
    recipe: flag.Recipe = "dm",
    partition: flag.Partition = 1,
    objective: flag.Objective = "mean",
    networks: flag.Networks = "random",
    pool: flag.Pool = None,
    pool_networks: _PoolNetworks = 5,
    pool_states: _PoolStates = 61,
    ce_weight: flag.CeWeight = 0.0,
    ce_ahead: flag.CeAhead = 6,
    eval_mode: flag.EvalMode = "SS",
    num_eval: flag.NumEval = 20,
    epoch_eval_train: flag.Epochs = 1000,
    lr_net: flag.LrNet = 0.01,
    batch_train: flag.BatchTrain = None,
    protocol: flag.ProtocolName = "dm",
    checks: flag.Checks = 1,
    seed: flag.Seed = 0,
    chunk_memory: flag.ChunkMemory = None,
    calibrate: _Calibrate = True,
    markdown: _Markdown = False,
    data_path: flag.DataPath = Path("data"),
    config: flag.Config = None,
) -> None:
    """Predict the memory and the time that a condensation takes, before anything is read.

    The data set is a packed file, of which the header is read; a data set with a preset; or --classes, --images and
    --size. Memory is counted as the condensation itself plans it. Times come from a calibration of the device, if it is
    here, on random images; of a GPU that is not here they are a model, and say so.
    """
    flags = SimpleNamespace(**ctx.params)
    data = _shape(ctx, flags)
    settings, trained = _settings(ctx, flags, data)
    devices: Sequence[str | None] = device or [None]
    made = [found for text in devices for found in _forecasts(text, flags, data, settings, trained)]
    if markdown:
        _print_markdown(made)
    elif not on_terminal():
        for each in made:
            print_json(each.summary())
    elif len(made) > 1:
        print_table(_title(data, settings), COLUMNS, [_row(each) for each in made])
        typer.echo("\n".join(dict.fromkeys(f"{each.device}: {each.rate or 'not timed'}" for each in made)))
    else:
        _print_parts(_title(data, settings), made[0])


def _shape(context: typer.Context, flags: SimpleNamespace) -> "Dataset":
    """The data set, or only its shape."""
    from fastdm.condensation.presets import PRESETS, find_preset
    from fastdm.data.sources import open_dataset
    from fastdm.data.unread import unread_dataset

    given = (flags.classes, flags.images, flags.size)
    named = named_dataset(context)
    if any(value is not None for value in given):
        if None in given:
            raise FastDMError("a data set that is not here needs all of --classes, --images and --size")
        if flags.source or is_given(context, "dataset"):
            raise FastDMError("name a data set, or give --classes, --images and --size; not both")
        return unread_dataset(flags.classes, flags.images, (flags.channels, flags.size, flags.size))
    known = find_preset(flags.preset) if flags.preset and not (flags.source or is_given(context, "dataset")) else None
    wanted = named or flags.dataset
    for each in PRESETS.values():
        if known is None and (each.dataset or "").lower() == wanted.lower():
            known = each
    if known is not None:
        return unread_dataset(
            known.classes,
            known.images,
            known.image_shape,
            known.dataset or flags.preset,
            in_memory=known.dataset is not None,
        )
    if user_path(wanted).is_dir():
        raise FastDMError(f"{wanted} is a folder, whose images would have to be read: pack it first (fastdm pack)")
    return open_dataset(wanted, data_path=flags.data_path)


def _settings(
    context: typer.Context, flags: SimpleNamespace, data: "Dataset"
) -> tuple["Settings", "NetworkPool | None"]:
    """The settings, not resolved, and the pool of networks or its shape, if they ask for one."""
    from fastdm.condensation.recipes import recipe_settings
    from fastdm.networks.architectures import default_network
    from fastdm.networks.trained import NetworkPool, unread_pool

    networks = flags.networks if is_given(context, "networks") else recipe_settings(flags.recipe, data, 1).networks
    trained = None
    if flags.pool is not None:
        trained = NetworkPool.load(flags.pool)
    elif networks == "trained":
        name = flags.model or default_network(data.image_shape)
        trained = unread_pool(name, data.image_shape, data.num_classes, flags.pool_networks, flags.pool_states)
    return given_settings(context, data, trained), trained


def _forecasts(
    text: str | None, flags: SimpleNamespace, data: "Dataset", settings: "Settings", pool: "NetworkPool | None"
) -> "list[Forecast]":
    """The forecasts for a device, one for each number of ranks."""
    import torch

    from fastdm.condensation.calibration import calibrate, modelled, process_bytes
    from fastdm.condensation.forecast import forecast
    from fastdm.system.device import default_device, free_memory
    from fastdm.system.gpus import find_gpu

    base = process_bytes()
    rate: Rate | None = None
    if text is None or text.isdecimal() or text.partition(":")[0] in ("cpu", "cuda"):
        device = default_device(f"cuda:{text}" if text and text.isdecimal() else text)
        settings, memory, name = settings.resolve(data, device), free_memory(device), str(device)
        if flags.calibrate:
            chunk_memory = flag.mebibytes(flags.chunk_memory)
            rate = calibrate(data, settings, device, pool, chunk_memory=chunk_memory)
    else:
        gpu = find_gpu(text)
        device, memory, name = torch.device("cuda", 0), gpu.memory, gpu.name
        settings = replace(settings, precision=settings.precision or "bf16").resolve(data, device)
        rate = modelled(gpu, settings)
    protocol = protocol_of(flags, settings, data)
    return [
        forecast(
            data,
            settings,
            device,
            rate,
            memory=memory,
            process_bytes=base,
            ranks=number,
            protocol=protocol,
            pool=pool,
            chunk_memory=flag.mebibytes(flags.chunk_memory),
            name=name,
        )
        for number in flags.ranks
    ]


def _title(data: "Dataset", settings: "Settings") -> str:
    shape = "x".join(map(str, data.image_shape))
    return (
        f"{data.name}: {data.num_classes:,} classes, {len(data.train):,} images of {shape}; ipc {settings.ipc}, "
        f"batch_real {settings.batch_real}, {settings.iterations:,} iterations"
    )


def _row(found: "Forecast") -> list[str]:
    return [
        found.device,
        str(found.ranks),
        found.plan.residence,
        f"{found.plan.chunk_classes} of {found.classes}",
        size_text(found.bytes("device")) if found.bytes("device") else "",
        size_text(found.bytes("host")),
        *(["", "", ""] if found.seconds is None else _times(found)),
    ]


def _times(found: "Forecast") -> list[str]:
    seconds = (found.total_seconds, found.evaluation_seconds)
    return [f"{found.seconds:.3g}", *("" if each is None else duration_text(each) for each in seconds)]


def _print_markdown(made: "Sequence[Forecast]") -> None:
    lines: list[Sequence[str]] = [COLUMNS, ["---"] * len(COLUMNS), *(_row(each) for each in made)]
    for line in lines:
        typer.echo(f"| {' | '.join(line)} |")


def _print_parts(title: str, found: "Forecast") -> None:
    rows: list[list[Any]] = [[part.name, size_text(part.bytes), part.place, part.source] for part in found.parts]
    totals = {place: found.bytes(place) for place in PLACES}
    rows += [
        [f"all on the {place}", size_text(total), place, "the process that takes the most"]
        for place, total in totals.items()
        if total
    ]
    print_table(title, ("part", "bytes", "where", "source"), rows)
    own = f"{found.classes} of the classes in one of {found.ranks} processes" if found.ranks > 1 else "all classes"
    typer.echo(
        f"{found.device}: {own}, {found.plan.chunk_classes} at a time; real images {found.plan.residence}, "
        f"{size_text(found.read_bytes)} of them in an iteration; {size_text(found.memory)} are free."
    )
    if found.seconds is None or found.total_seconds is None:
        typer.echo("Not timed: --calibrate takes about 10 s.")
        return
    evaluation = f"; an evaluation about {duration_text(found.evaluation_seconds)}" if found.evaluation_seconds else ""
    typer.echo(
        f"An iteration takes about {duration_text(found.seconds)}, all of them {duration_text(found.total_seconds)}"
        f"{evaluation}: {found.rate}."
    )
