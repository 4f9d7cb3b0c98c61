"""`fastdm inspect`."""

from pathlib import Path
from typing import Annotated

import typer

from fastdm.cli.output import print_facts
from fastdm.system.files import user_path


def inspect(
    file: Annotated[
        Path,
        typer.Argument(
            parser=user_path,
            metavar="FILE",
            help="A run folder, a condensed set, a packed set, a checkpoint or the public code's .pt.",
        ),
    ],
    verify: Annotated[bool, typer.Option("--verify", help="Also compare the checksums of the file.")] = False,
) -> None:
    """Show what a run folder or a file holds."""
    from fastdm.applications.run_summary import summarise_run, summarise_set

    if file.is_dir():
        facts = summarise_run(file)
    elif verify or (header := summarise_set(file)) is None:
        from fastdm.applications.inspection import inspect as inspect_file

        facts = inspect_file(file, verify=verify)
    else:
        facts = header
    print_facts(str(file), {"file": str(file), **facts})
