"""The command-line options that suites share."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch


def parser(
    description: str | None,
    *,
    what: Sequence[str] = (),
    device: bool = False,
    data: bool = False,
    compiled: bool = False,
    seconds: float | None = None,
) -> argparse.ArgumentParser:
    """A parser with `--smoke` and, as asked for, `--device`, `--data_path`, `--no-compile` and `--seconds`.

    what: that which a command measures one of, the first by default.
    """
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    if what:
        made.add_argument("what", nargs="?", choices=what, default=what[0])
    made.add_argument("--smoke", action="store_true", help="tiny, and not compiled: whether it runs, not how fast")
    if device:
        made.add_argument("--device", type=_device, default="cuda" if torch.cuda.is_available() else "cpu")
    if data:
        made.add_argument("--data_path", type=Path, default=Path("data"), help="folder of data sets")
    if compiled:
        made.add_argument("--no-compile", action="store_true", help="leave torch.compile out, which takes long")
    if seconds is not None:
        made.add_argument("--seconds", type=float, default=seconds, help=f"for the timing, about; default {seconds:g}")
    return made


def _device(name: str) -> torch.device:
    """The device with its number: a tensor's device is never plain "cuda"."""
    device = torch.device(name)
    return torch.device("cuda", 0) if device.type == "cuda" and device.index is None else device
