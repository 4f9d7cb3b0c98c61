"""Everything that only a GPU can tell, in one command of at most eight minutes, without a network.

python -m bench.gpu_report [--out bench/results] [--data DIR] [--minutes 8] [--device cuda] [--smoke]

See ``bench/stages.py`` for what it leaves in --out; at the end comes RESULTS.md with plots. --data: where data sets
are, as ``fastdm condense --data_path``; with it, a short condensation is evaluated too. ``--device cpu --smoke`` runs
the same stages on tiny shapes anywhere.

The package need not be installed: without it, this puts a copy of the working tree's layout on the path, and builds
the C++ extension if that can be done.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bench import results
from bench.stages import Stage, report_stage, run_all


def stages(device: str, smoke: bool, data: Path | None) -> Iterator[Stage]:
    """In the order of their worth, should the time not suffice for all."""
    common = ("--device", device, *(["--smoke"] if smoke else []))
    yield Stage("peaks", ("-m", "bench.peaks", *common), 40)
    # A smoke run need not wait for the host's compiler.
    plain = ("--no-compile",) if smoke else ()
    quick = ("--seconds", "1" if smoke else "25")
    yield Stage("waterfall", ("-m", "bench.iteration", "waterfall", *common, *plain, *quick), 100)
    tests = ("-m", "pytest", "-q", "-x" if smoke else "--maxfail=20", "-p", "no:cacheprovider", "tests/gpu")
    # Without a GPU, nothing is collected there.
    yield Stage("gpu_tests", tests, 110, fine=(0,) if device != "cpu" else (5,))
    yield Stage("kernels", ("-m", "bench.kernels", *common, *plain, "--seconds", "100"), 120)
    yield Stage("scale", ("-m", "bench.iteration", "scale", *common, "--seconds", "1" if smoke else "60"), 90)
    yield Stage("evaluation", ("-m", "bench.iteration", "evaluation", *common), 45)
    if data is not None:
        short = ("--iterations", "2", "--epochs", "1") if smoke else ()
        case = ("-m", "bench.accuracy", "--data_path", str(data), "--device", device, "--only", "CIFAR10-1", *short)
        yield Stage("accuracy", case, 60)
    yield report_stage()


def prepare(build: Path) -> tuple[Path, dict[str, str], str]:
    """Where to run python and with what environment, so that `fastdm` and `bench` of this working tree are imported.

    build: a folder that is used only if the package is not installed from here.
    Returns the third a word on which of it happened.
    """
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    probe = "import fastdm.kernels, pathlib; print(pathlib.Path(fastdm.kernels.__file__).resolve().parent.parent)"
    found = subprocess.run([sys.executable, "-c", probe], cwd=results.REPOSITORY, capture_output=True, text=True)
    if found.returncode == 0 and Path(found.stdout.strip()) == results.REPOSITORY:
        return results.REPOSITORY, environment, "installed"
    extension = subprocess.run(
        [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace", "--build-temp", str(build / "objects")],
        cwd=results.REPOSITORY,
        capture_output=True,
        text=True,
        timeout=180,
    )
    # The folder kernels/ is fastdm.kernels in the package: show python that layout.
    package = build / "fastdm"
    package.mkdir(parents=True)
    for entry in (results.REPOSITORY / "fastdm").iterdir():
        (package / entry.name).symlink_to(entry)
    (package / "kernels").symlink_to(results.REPOSITORY / "kernels")
    for name in ("bench", "tests", "pyproject.toml"):
        (build / name).symlink_to(results.REPOSITORY / name)
    return build, environment, "linked" if extension.returncode == 0 else "linked, without the C++ extension"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=results.REPOSITORY / "bench" / "results")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--smoke", action="store_true")
    arguments = parser.parse_args()
    start = time.monotonic()
    os.environ["FASTDM_RESULTS"] = str(arguments.out.resolve())
    with tempfile.TemporaryDirectory() as build:
        where, environment, how = prepare(Path(build))
        if arguments.smoke:
            environment["OMP_NUM_THREADS"] = "1"  # Threads that wait for one another cost more than they do.
        return run_all(
            "gpu_report",
            list(stages(arguments.device, arguments.smoke, arguments.data and arguments.data.resolve())),
            60 * arguments.minutes - (time.monotonic() - start),
            {"smoke": arguments.smoke, "minutes": arguments.minutes, "package": how},
            arguments.device,
            environment,
            where,
        )


if __name__ == "__main__":
    sys.exit(main())
