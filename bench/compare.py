"""Is it faster than it was? The step, the ops, and loading at another commit and here, interleaved, as ratios.

    python -m bench.compare REV [--only step dsa …] [--rounds 20]

REV is built into a folder of its own, as the working tree is; two processes, one for each, then run the same benchmark
one after the other, round by round. A ratio above 1 means faster here. What is compared is written against public names
of `fastdm` and `fastdm.kernels` alone, so that it runs in any commit that has them, wherever its modules are.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from bench.harness import arguments, records
from bench.harness.machine import REPOSITORY
from bench.harness.timer import timed

SAMPLE = 0.05  # seconds of one sample at least

Turns = Callable[[int], float]
"""Takes so many turns; returns seconds per turn."""


def _step(device: torch.device) -> Turns:
    """Iterations of `fastdm.condense` at CIFAR-10's size with 64 real images per class."""
    import fastdm

    labels = torch.arange(10).repeat_interleave(512)
    images = torch.randint(256, (len(labels), 3, 32, 32), dtype=torch.uint8)

    def run(turns: int) -> float:
        ends: list[float] = []
        how: dict[str, Any] = {"device": device, "callback": lambda *_: ends.append(time.perf_counter())}
        fastdm.condense((images, labels), ipc=10, batch_real=64, iterations=turns + 1, **how)
        return (ends[-1] - ends[0]) / turns  # The first iteration ends after all preparations.

    return run


def _gather(device: torch.device) -> Turns:
    """2,560 random images out of 20,000 from memory."""
    from fastdm.data import Pool

    pool = Pool(torch.randint(256, (20_000, 3, 32, 32), dtype=torch.uint8), torch.tensor([0, 20_000]))
    return _repeated(partial(pool.gather, torch.randint(20_000, (2560,))), device)


def _pack(device: torch.device) -> Turns:
    """60 JPEGs of 500×375 to 64×64."""
    import fastdm

    random = np.random.default_rng(0)
    temporary = tempfile.TemporaryDirectory()
    folder, out = Path(temporary.name, "images"), Path(temporary.name, "set.fastdm")
    for number in range(60):
        path = folder / f"class {number % 3}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (24, 32, 3), np.uint8)).resize((500, 375)).save(path)

    def pack(_: object = temporary) -> None:  # The folder lives as long as this.
        fastdm.pack(folder, out, 64)
        out.unlink()

    return _repeated(pack, device)


def _op(name: str, arguments: Callable[[], tuple[Any, ...]], device: torch.device) -> Turns:
    """An op of `fastdm.kernels`."""
    from fastdm import kernels

    values = [value.to(device) if isinstance(value, torch.Tensor) else value for value in arguments()]
    return _repeated(partial(getattr(kernels, name), *values), device)


def _repeated(call: Callable[[], object], device: torch.device) -> Turns:
    return lambda turns: timed(call, turns, device) / turns


def _dsa() -> tuple[Any, ...]:
    """Images of ten classes, each brightened, shifted or rotated by an angle of its own."""
    from fastdm.kernels import table

    rows, angle = table.identity(10), torch.linspace(-0.2, 0.2, 4)
    rows[:3, table.BRIGHTNESS], rows[3:6, table.SHIFT_ROWS] = 0.3, 2
    rows[6:, table.ROTATE_COS], rows[6:, table.ROTATE_SIN] = angle.cos(), angle.sin()
    return torch.randn(2560, 3, 32, 32), rows, torch.arange(10).repeat_interleave(256)


_CLASSES = torch.arange(11)
OPS: dict[str, Callable[[], tuple[Any, ...]]] = {
    "draw": lambda: (torch.tensor([0, 1]), _CLASSES * 5000, 256),
    "dsa": _dsa,
    "norm_relu_pool": lambda: (torch.randn(64, 128, 32, 32).to(memory_format=torch.channels_last),),
    "class_mean_difference": lambda: (torch.rand(2560, 2048), torch.rand(100, 2048), _CLASSES * 256, _CLASSES * 10),
    "uniform": lambda: (torch.tensor([0, 1]), torch.arange(75), 4096, 3),
}
BENCHMARKS: dict[str, Callable[[torch.device], Turns]] = {"step": _step, "gather": _gather, "pack": _pack}
BENCHMARKS |= {name: partial(_op, name, arguments) for name, arguments in OPS.items()}


def use(library: Path) -> None:
    """Import the package of a build."""
    # An editable installation would give its own modules for those that the other commit lacks.
    sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in str(getattr(finder, "__module__", ""))]
    sys.path.insert(0, str(library))


@cache
def made(name: str, device: torch.device) -> Turns:
    return BENCHMARKS[name](device)


def seconds(name: str, device: torch.device, turns: int) -> float:
    return made(name, device)(turns)


def build(tree: Path, into: Path) -> Path:
    """The package of a tree, with its extension, in a folder that can be put on the path."""
    command = [sys.executable, "setup.py", "--quiet", "build", "--build-base", str(into), "--build-lib"]
    done = subprocess.run([*command, str(into / "lib")], cwd=tree, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{tree} could not be built:\n{done.stderr[-2000:]}")
    return into / "lib"


def compare(name: str, device: torch.device, libraries: dict[str, Path], rounds: int) -> str:
    """A line with the ratio of the times there and here, and its spread over the rounds."""
    there, here = libraries
    process = partial(ProcessPoolExecutor, 1, get_context("spawn"), use)
    with process((libraries[there],)) as before, process((libraries[here],)) as now:

        def both(turns: int) -> list[float]:
            return [one.submit(seconds, name, device, turns).result() for one in (before, now)]

        try:
            both(2)
            turns = max(1, int(SAMPLE / min(both(1))))
        except Exception as error:  # The other commit may lack what is compared.
            return f"{name:24} {records.failure(error)}"
        pairs = [both(turns) for _ in range(rounds)]
    ratio = records.spread([old / new for old, new in pairs])
    medians = [records.spread(times)["median"] * 1e3 for times in zip(*pairs, strict=True)]
    return (
        f"{name:24} {ratio['median']:.3f} ({ratio['p20']:.3f}..{ratio['p80']:.3f})   "
        f"{there} {medians[0]:.4g} ms, {here} {medians[1]:.4g} ms, {rounds} rounds"
    )


def main() -> None:
    parser = arguments.parser(__doc__, "--device")
    parser.add_argument("rev", metavar="REV", help="anything that git rev-parse knows")
    parser.add_argument("--only", nargs="+", choices=BENCHMARKS, default=list(BENCHMARKS))
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    archive = subprocess.check_output(["git", "archive", options.rev], cwd=REPOSITORY)
    short = subprocess.check_output(["git", "rev-parse", "--short", options.rev], cwd=REPOSITORY, text=True).strip()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        tree = folder / "tree"
        tree.mkdir()
        subprocess.run(["tar", "-x", "-C", tree], input=archive, check=True)
        libraries = {short: build(tree, folder / "there"), "here": build(REPOSITORY, folder / "here")}
        for name in options.only:
            print(compare(name, options.device, libraries, 2 if options.smoke else options.rounds), flush=True)


if __name__ == "__main__":
    main()
