"""The command-line options that suites share."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch


def _device(name: str) -> torch.device:
    """The device with its number: a tensor's device is never plain "cuda"."""
    device = torch.device(name)
    return torch.device("cuda", 0) if device.type == "cuda" and device.index is None else device


_SHARED: dict[str, dict[str, Any]] = {
    "--smoke": {"action": "store_true", "help": "tiny, and not compiled: whether it runs, not how fast"},
    "--device": {"type": _device, "default": "cuda" if torch.cuda.is_available() else "cpu"},
    "--data_path": {"type": Path, "default": Path("data"), "help": "folder of data sets"},
    "--no-compile": {"action": "store_true", "help": "leave torch.compile out, which takes long"},
}


def parser(
    description: str | None, *shared: str, what: Sequence[str] = (), seconds: float | None = None
) -> argparse.ArgumentParser:
    """A parser with `--smoke` and those of the shared options that are named.

    what: that which a command measures one of, the first by default. seconds: the default of `--seconds`, if it has it.
    """
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    if what:
        made.add_argument("what", nargs="?", choices=what, default=what[0])
    for name in ("--smoke", *shared):
        made.add_argument(name, **_SHARED[name])
    if seconds is not None:
        made.add_argument("--seconds", type=float, default=seconds, help=f"for the timing, about; default {seconds:g}")
    return made
