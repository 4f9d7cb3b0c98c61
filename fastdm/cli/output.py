"""What commands print: tables and sentences on a terminal, JSON Lines elsewhere."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from fastdm.evaluation.protocol import Evaluation


def print_saved(path: Path) -> None:
    if Console().is_terminal:
        typer.echo(f"saved {path}")
    else:
        print(json.dumps({"saved": str(path)}))


def print_outcome(page: Path, folders: Sequence[Path], *, evaluated: bool) -> None:
    """Where the page, the sets and the accuracies of a condensation are."""
    if not Console().is_terminal:
        print(json.dumps({"report": str(page), "runs": [str(folder) for folder in folders]}))
        return
    several = f" to {folders[-1].name}" if len(folders) > 1 else ""
    accuracies = " and what was measured of it (evaluation.json)" if evaluated else ""
    typer.echo(f"Open {page} in a browser to see the result.")
    typer.echo(f"Each run folder, {folders[0]}{several}, holds its set (synthetic.safetensors){accuracies}.")


def print_evaluation(title: str, evaluation: "Evaluation", **about: str) -> None:
    """A table on a terminal, with accuracies in percent; JSON lines elsewhere, with what they are `about`."""
    console = Console()
    table = Table("network", "accuracy %", "networks", title=title)
    for name, accuracies in evaluation.accuracies.items():
        mean, std = evaluation.mean[name], evaluation.std[name]
        if console.is_terminal:
            table.add_row(name, f"{100 * mean:.2f} ± {100 * std:.2f}", str(len(accuracies)))
        else:
            line = {"evaluation": title, **about, "network": name, "mean": mean, "std": std, "accuracies": accuracies}
            print(json.dumps(line), flush=True)
    if console.is_terminal:
        console.print(table)
