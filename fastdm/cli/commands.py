"""The commands, as the option parser knows them."""

from collections.abc import Callable
from typing import Annotated

import typer

from fastdm.cli.catalogue import catalogue
from fastdm.cli.condense import condense
from fastdm.cli.continual import continual
from fastdm.cli.environment import environment
from fastdm.cli.evaluate import evaluate
from fastdm.cli.export import export
from fastdm.cli.inspect import inspect
from fastdm.cli.pack import pack
from fastdm.cli.parsing import Command, Program
from fastdm.cli.plan import plan
from fastdm.cli.pool import pool
from fastdm.cli.profile import profile
from fastdm.cli.report import report
from fastdm.cli.search import search
from fastdm.version import __version__

HELP = "Condense image data sets into a few synthetic images per class by distribution matching."

app = typer.Typer(
    cls=Program,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={
        # The public code's flags have underscores and a capital letter; dashes and lower case serve as well.
        "token_normalize_func": lambda token: token.replace("-", "_").lower(),
        "help_option_names": ["-h", "--help"],
    },
    help=HELP,
)
COMMANDS: dict[str, Callable[..., None]] = {
    "condense": condense,
    "evaluate": evaluate,
    "continual": continual,
    "search": search,
    "export": export,
    "inspect": inspect,
    "pack": pack,
    "plan": plan,
    "pool": pool,
    "profile": profile,
    "report": report,
    "list": catalogue,
    "env": environment,
}
for name, command in COMMANDS.items():
    summary = str(command.__doc__).partition("\n\n")[0]
    app.command(name, cls=Command, short_help=summary)(command)  # else the list of commands would cut it off


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"fastdm {__version__}")
        raise typer.Exit


@app.callback(help=HELP)
def _global(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass
