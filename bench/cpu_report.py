"""Everything that a CPU can tell, in one command of at most a quarter of an hour: what ``make bench`` runs.

python -m bench.cpu_report [--data DIR] [--minutes 15] [--only STAGE …]

--data: where data sets are; the loading benchmark decodes the pictures that it finds there.
"""

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from bench.stages import Stage, report_stage, run_all


def stages(data: Path | None) -> Iterator[Stage]:
    device = ("--device", "cpu")
    where = ("--data_path", str(data)) if data is not None else ()
    yield Stage("peaks", ("-m", "bench.peaks", *device), 60)
    yield Stage("launches", ("-m", "bench.launches"), 90)
    yield Stage("traffic", ("-m", "bench.traffic"), 60)
    yield Stage("host", ("-m", "bench.host"), 120)
    yield Stage(
        "waterfall", ("-m", "bench.iteration", "waterfall", *device, "--batch_real", "64", "--seconds", "30"), 240
    )
    # torch.compile's C++ takes a quarter of a minute for every case.
    yield Stage("kernels", ("-m", "bench.kernels", *device, "--no-compile", "--seconds", "60"), 90)
    yield Stage("scale", ("-m", "bench.iteration", "scale", *device, "--seconds", "40"), 90)
    yield Stage("evaluation", ("-m", "bench.iteration", "evaluation", *device), 90)
    # Half a minute each: one that gains and one that does not.
    networks = ("--network", "ConvNetBN", "AlexNet", "--seconds", "6")
    yield Stage("torch_compile", ("-m", "bench.torch_compile", *networks), 90)
    yield Stage("loading", ("-m", "bench.loading", *where), 240)
    # With what time is left, as many cases as can be had; the last takes four minutes.
    yield Stage("cpu_step", ("-m", "bench.cpu_step", "--limit", "6", "--seconds", "240"), 540)
    yield report_stage()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--only", nargs="+", help="stages")
    arguments = parser.parse_args()
    chosen = [stage for stage in stages(arguments.data) if stage.name in (arguments.only or [stage.name])]
    settings = {"minutes": arguments.minutes}
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    return run_all("cpu_report", chosen, 60 * arguments.minutes, settings, "cpu", environment)


if __name__ == "__main__":
    sys.exit(main())
