"""What commands print: tables and sentences on a terminal, JSON Lines elsewhere."""

import json
from pathlib import Path
from statistics import fmean
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


def print_evaluation(title: str, evaluation: "Evaluation", **about: str) -> None:
    """A table on a terminal, with accuracies in percent; JSON lines elsewhere, with what they are `about`."""
    console = Console()
    table = Table("network", "accuracy %", "networks", title=title)
    for name, accuracies in evaluation.accuracies.items():
        mean, std = evaluation.mean[name], evaluation.std[name]
        if console.is_terminal:
            best = f", best {100 * fmean(evaluation.best[name]):.2f}" if evaluation.best else ""
            table.add_row(name, f"{100 * mean:.2f} ± {100 * std:.2f}{best}", str(len(accuracies)))
        else:
            line = {"evaluation": title, **about, "network": name, "mean": mean, "std": std, "accuracies": accuracies}
            line |= {"best": evaluation.best[name]} if evaluation.best else {}
            print(json.dumps(line), flush=True)
    if console.is_terminal:
        console.print(table)
