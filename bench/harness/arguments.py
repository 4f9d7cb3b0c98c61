"""The command-line options that suites share."""

import argparse
from pathlib import Path

import torch


def parser(
    description: str | None, *, device: bool = False, data: bool = False, seconds: float | None = None
) -> argparse.ArgumentParser:
    """A parser with `--smoke` and, as asked for, `--device`, `--data_path` and `--seconds` with its default."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--smoke", action="store_true", help="tiny shapes: whether it runs, not how fast")
    if device:
        made.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    if data:
        made.add_argument("--data_path", type=Path, default=Path("data"), help="folder of data sets")
    if seconds is not None:
        made.add_argument("--seconds", type=float, default=seconds, help=f"for the timing, about; default {seconds:g}")
    return made


def device_of(arguments: argparse.Namespace) -> torch.device:
    """The chosen device with its number: a tensor's device is never plain "cuda"."""
    device = torch.device(arguments.device)
    return torch.device("cuda", 0) if device.type == "cuda" and device.index is None else device
