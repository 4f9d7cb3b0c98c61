"""What commands print: tables and sentences on a terminal, JSON Lines elsewhere."""

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from pathlib import Path
from statistics import fmean, pstdev
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fastdm.system.streams import on_terminal
from fastdm.system.text import printable

if TYPE_CHECKING:
    from fastdm.evaluation.outcome import Evaluation
    from fastdm.system.ranks import Ranks

MOST_SHOWN = 8
"""Names that a table lists; of more it shows the first, and their number."""

TOP5_FROM = 20
"""Classes from which on a table shows the top-5 accuracy."""


@contextmanager
def among_ranks() -> Iterator["Ranks"]:
    """Join the ranks that torchrun or srun started; of these only the first one's output is shown."""
    from fastdm.system.ranks import joined

    with joined() as ranks, ExitStack() as stack:
        if not ranks.first:
            stack.enter_context(redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
        yield ranks


def print_json(content: Mapping[str, Any]) -> None:
    print(json.dumps(content), flush=True)


def print_saved(path: Path) -> None:
    if on_terminal():
        typer.echo(f"saved {printable(path)}")
    else:
        print_json({"saved": str(path)})


def print_facts(title: str, facts: Mapping[str, Any]) -> None:
    """A table of two columns on a terminal, a JSON object elsewhere."""
    if not on_terminal():
        print_json(facts)
        return
    table = Table(title=Text(printable(title)), show_header=False)
    for name, value in facts.items():
        table.add_row(Text(printable(name)), Text(shown(value)))
    Console().print(table)


def shown(value: Any) -> str:
    """A value as people read it."""
    if isinstance(value, Mapping):
        return "\n".join(f"{printable(name)}: {shown(each)}" for name, each in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        texts = [shown(each) for each in value[:MOST_SHOWN]]
        more = f", … ({len(value):,} in all)" if len(value) > MOST_SHOWN else ""
        between = "\n\n" if any(isinstance(each, Mapping) for each in value) else ", "
        return between.join(texts) + more
    if isinstance(value, float):
        return f"{value:.6g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else printable(value)


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on a terminal; nothing elsewhere, where its content has been printed as JSON lines."""
    if on_terminal():
        table = Table(*map(printable, columns), title=Text(printable(title)))
        for row in rows:
            table.add_row(*(Text(printable(each)) for each in row))
        Console().print(table)


def print_outcome(result: Path, page: Path, folders: Sequence[Path], *, evaluated: bool) -> None:
    """Where the sets, the page and the accuracies of a condensation are."""
    if not on_terminal():
        print_json({"saved": str(result), "report": str(page), "runs": [str(folder) for folder in folders]})
        return
    print_saved(result)
    several = len(folders) > 1
    where = printable(f"{folders[0]} to {folders[-1].name}" if several else folders[0])
    accuracies = " and what was measured of it (evaluation.json)" if evaluated else ""
    typer.echo(f"Open {printable(page)} in a browser to see the result.")
    whose = "Each run folder" if several else "The run folder"
    typer.echo(f"{whose}, {where}, holds its set (synthetic.safetensors){accuracies}.")


def print_evaluation(title: str, evaluation: "Evaluation", **about: str) -> None:
    """A table on a terminal, with accuracies in percent; JSON lines elsewhere, with what they are `about`."""
    if not on_terminal():
        _print_lines(title, evaluation, about)
        return
    has_top5 = any(len(matrix) >= TOP5_FROM for matrix in evaluation.confusion.values())
    columns = ["network", "accuracy %", *(["top-5 %"] if has_top5 else []), "networks"]
    table = Table(*columns, title=Text(printable(title)))
    for name, accuracies in evaluation.accuracies.items():
        best = f", best {100 * fmean(evaluation.best[name]):.2f}" if evaluation.best else ""
        top5 = [percent(fmean(evaluation.top5[name]), pstdev(evaluation.top5[name]))] if has_top5 else []
        row = [percent(evaluation.mean[name], evaluation.std[name]) + best, *top5, str(len(accuracies))]
        table.add_row(printable(name), *row)
    Console().print(table)


def _print_lines(title: str, evaluation: "Evaluation", about: Mapping[str, str]) -> None:
    """A line for each network, with all but the confusion matrix, whose lines would be long."""
    of_network = {kind: values for kind, values in evaluation.summary().items() if kind != "confusion"}
    for name in evaluation.accuracies:
        values = {kind: each[name] for kind, each in of_network.items() if name in each}
        print_json({"evaluation": title, **about, "network": name, **values})


def percent(mean: float, std: float) -> str:
    """A mean with its spread, in percent."""
    return f"{100 * mean:.2f} {'±' if _can_write('±') else '+-'} {100 * std:.2f}"


def print_total(evaluation: "Evaluation", experiments: int, model: str, dataset: str) -> None:
    """The accuracies of all experiments together, on a terminal in the public code's words."""
    if not on_terminal():
        print_evaluation(f"all {experiments} experiments", evaluation, dataset=dataset)
        return
    typer.echo("==================== Final Results ====================")
    for name, accuracies in evaluation.accuracies.items():
        typer.echo(
            f"Run {experiments} experiments, train on {model}, evaluate {len(accuracies)} random {name}, "
            f"mean  = {100 * evaluation.mean[name]:.2f}%  std = {100 * evaluation.std[name]:.2f}%"
        )


def _can_write(text: str) -> bool:
    # While a bar is shown, rich stands in for the output, and names no encoding.
    shown = getattr(sys.stdout, "rich_proxied_file", sys.stdout)
    try:
        text.encode(getattr(shown, "encoding", None) or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
