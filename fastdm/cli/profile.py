"""`fastdm profile`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fastdm.cli.flags import (
    DEFAULT_IPC,
    Backend,
    BatchReal,
    ChunkMemory,
    Config,
    DataPath,
    Dataset,
    Device,
    Ipc,
    Model,
    PrecisionOption,
    Seed,
    Source,
    a_path,
    mebibytes,
)
from fastdm.cli.output import among_ranks, print_json
from fastdm.cli.settings import named_dataset
from fastdm.system.streams import on_terminal
from fastdm.system.text import printable, size_text

if TYPE_CHECKING:
    from fastdm.applications.profiling import Profile


def profile(
    ctx: typer.Context,
    source: Source = None,
    dataset: Dataset = "CIFAR10",
    model: Model = None,
    ipc: Ipc = DEFAULT_IPC,
    batch_real: BatchReal = 256,
    iterations: Annotated[int, typer.Option("--iterations", min=1, help="Iterations to record.")] = 3,
    data_path: DataPath = Path("data"),
    save_path: Annotated[Path, a_path("--save_path", "Folder for the trace.")] = Path("result/profile"),
    seed: Seed = 0,
    device: Device = None,
    precision: PrecisionOption = None,
    backend: Backend = "auto",
    chunk_memory: ChunkMemory = None,
    config: Config = None,
) -> None:
    """Show where the time of an iteration goes: a trace, the ten costliest ops, and what bounds the run.

    It also says for which share of an iteration the step waits for real images. Several processes that torchrun or srun
    started share the classes, as those of fastdm condense do.
    """
    from fastdm.applications.profiling import profile as profile_run
    from fastdm.condensation.settings import Settings
    from fastdm.data.sources import open_dataset
    from fastdm.system.device import chosen_backend, default_device

    settings = Settings(ipc=ipc, batch_real=batch_real, network=model, seed=seed, precision=cast(Any, precision))
    with among_ranks():
        data = open_dataset(named_dataset(ctx) or dataset, data_path=data_path)
        where = default_device(device)
        with chosen_backend(backend, where):
            result = profile_run(
                data,
                settings,
                where,
                save_path,
                iterations=iterations,
                chunk_memory=mebibytes(chunk_memory),
            )
        _print(f"{data.name}, ipc {ipc}, {result.device}", result)


def _print(title: str, result: "Profile") -> None:
    if not on_terminal():
        print_json(result.summary())
        return
    table = Table("op", "ms per iteration", "calls per iteration", title=Text(printable(title)))
    for name, seconds, calls in result.ops:
        table.add_row(Text(name), f"{1000 * seconds:.2f}", f"{calls:.0f}")
    Console().print(table)
    typer.echo(result.verdict())
    typer.echo(printable(f"peak memory {size_text(result.peak_bytes)}; wrote {', '.join(result.files)}"))
