"""`fastdm inspect`."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table


def inspect(
    file: Annotated[Path, typer.Argument(help="A condensed set, a packed set, a checkpoint or the public code's .pt.")],
    verify: Annotated[
        bool, typer.Option("--verify", help="Also compare every class's checksum in a packed set.")
    ] = False,
) -> None:
    """Show what a file holds."""
    from fastdm.applications.inspection import inspect as inspect_file

    facts = inspect_file(file, verify=verify)
    console = Console()
    if not console.is_terminal:
        print(json.dumps({"file": str(file), **facts}))
        return
    table = Table(title=str(file), show_header=False)
    for name, value in facts.items():
        table.add_row(name, str(value))
    console.print(table)
