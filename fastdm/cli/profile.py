"""`fastdm profile`."""

import json
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from rich.console import Console
from rich.table import Table

from fastdm.cli.options import (
    Backend,
    BatchReal,
    ChunkMemory,
    DataPath,
    Dataset,
    Device,
    Ipc,
    Model,
    PrecisionOption,
    Seed,
    mebibytes,
)


def profile(
    dataset: Dataset = "CIFAR10",
    model: Model = None,
    ipc: Ipc = 10,
    batch_real: BatchReal = 256,
    iterations: Annotated[int, typer.Option("--iterations", min=1, help="Iterations to record.")] = 3,
    data_path: DataPath = Path("data"),
    save_path: Annotated[Path, typer.Option("--save_path", help="Folder for the trace.")] = Path("result/profile"),
    seed: Seed = 0,
    device: Device = None,
    precision: PrecisionOption = None,
    backend: Backend = "auto",
    chunk_memory: ChunkMemory = None,
) -> None:
    """Show where the time of an iteration goes: a trace, the ten costliest ops, and what bounds the run."""
    from fastdm.applications.profiling import profile as profile_run
    from fastdm.condensation.settings import Settings
    from fastdm.data.sources import open_dataset
    from fastdm.system.device import chosen_backend, default_device

    data = open_dataset(dataset, data_path=data_path)
    settings = Settings(ipc=ipc, batch_real=batch_real, network=model, seed=seed, precision=cast(Any, precision))
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
    console = Console()
    if not console.is_terminal:
        print(json.dumps(result.summary()))
        return
    table = Table("op", "ms per iteration", "calls per iteration", title=f"{data.name}, ipc {ipc}, {result.device}")
    for name, seconds, calls in result.ops:
        table.add_row(name, f"{1000 * seconds:.2f}", f"{calls:.0f}")
    console.print(table)
    console.print(result.verdict(), highlight=False)
    console.print(f"peak memory {result.peak_bytes / 2**20:.0f} MiB; wrote {', '.join(result.files)}", highlight=False)
