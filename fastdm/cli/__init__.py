"""The `fastdm` command: parses, calls, prints."""

import signal
import sys
from typing import Annotated

import typer

from fastdm.cli.condense import condense
from fastdm.cli.evaluate import evaluate
from fastdm.cli.inspect import inspect
from fastdm.cli.pack import pack
from fastdm.cli.pool import pool
from fastdm.cli.profile import profile
from fastdm.errors import FastDMError
from fastdm.version import __version__

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    # The public code's flags have underscores and a capital letter; dashes and lower case serve as well.
    context_settings={"token_normalize_func": lambda token: token.replace("-", "_").lower()},
    help="Condense image data sets into a few synthetic images per class by distribution matching.",
)
for command in (condense, evaluate, inspect, pack, pool, profile):
    app.command()(command)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"fastdm {__version__}")
        raise typer.Exit


@app.callback()
def _global(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Condense image data sets into a few synthetic images per class by distribution matching."""


class _Stopped(BaseException):
    """Ctrl-C, or a batch system's end of time."""


def _stop(signal_number: int, frame: object) -> None:
    raise _Stopped


def main() -> None:
    """Run the command; a user's mistake is one sentence and exit code 2, Ctrl-C leaves a checkpoint and is 130."""
    # An exception of our own: the option parser would end a KeyboardInterrupt in its own way.
    signal.signal(signal.SIGINT, _stop)
    signal.signal(signal.SIGTERM, _stop)
    try:
        app()
    except FastDMError as error:
        print(f"fastdm: {error}", file=sys.stderr)
        sys.exit(2)
    except _Stopped:
        print("fastdm: stopped; continue condense or pack with --resume", file=sys.stderr)
        sys.exit(130)
