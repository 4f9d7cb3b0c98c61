"""Is it faster than it was? Chosen benchmarks at another commit and here, in turns, as ratios with their spread.

python -m bench.compare REV [--only step dsa …] [--device cuda] [--rounds 20]

REV is checked out beside the working tree and built into a folder of its own, as the working tree is; two processes,
one for each, then run the same benchmark one after the other, round by round. A ratio above 1 means faster here.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any

from bench import results

SAMPLE = 0.05  # seconds of one sample at least


# --- what is compared: public functions of the package, that both commits are likely to have -------------------------


def _step(device: str) -> Callable[[], object]:
    """An iteration of CIFAR-10's size with 64 real images per class."""
    import torch

    from bench.workloads import Workload

    # Where it stands, in commits before and since build.py.
    build = importlib.import_module("fastdm.build" if importlib.util.find_spec("fastdm.build") else "fastdm.loop")

    work = Workload("CIFAR-10", 10, 32, 10, 512, batch_real=64)
    where = torch.device(device)
    dataset = work.dataset(where)
    settings = work.settings().resolve(dataset, where)
    flags = build.precision_context(settings.precision, where, deterministic=settings.deterministic)
    dtype = flags.__enter__()  # For the life of this process.
    step = build.build_step(dataset, settings, where, dtype)[0]
    iteration = iter(range(10**9))
    return lambda: step(next(iteration))


def _kernel(op: str) -> Callable[[str], Callable[[], object]]:
    """The first case of an op in bench/kernels.py."""

    def make(device: str) -> Callable[[], object]:
        import torch

        from bench import kernels

        where = torch.device(device)
        case = next(case for case in kernels.cases(where, smoke=False) if case.op == op)
        arguments = [case.make(seed) for seed in range(4)]
        turn = iter(range(10**9))
        return lambda: case.run(*arguments[next(turn) % len(arguments)])

    return make


def _gather(_: str) -> Callable[[], object]:
    """2,560 random images out of 20,000 from memory."""
    import torch

    from fastdm.data.pool import Pool

    pool = Pool(torch.randint(256, (20_000, 3, 32, 32), dtype=torch.uint8), torch.tensor([0, 20_000]))
    index = torch.randint(20_000, (2560,))
    return lambda: pool.gather(index)


BENCHMARKS: dict[str, Callable[[str], Callable[[], object]]] = {
    "step": _step,
    "gather": _gather,
    **{op: _kernel(op) for op in ("dsa", "norm_relu_pool", "class_mean_difference", "uniform", "draw")},
}


# --- one process for each commit -------------------------------------------------------------------------------------


def work(name: str, device: str) -> None:
    """Run a benchmark once for every line of stdin and answer with the seconds per call, or with what went wrong."""
    import torch

    # An editable installation would give its own modules for those that the other commit lacks.
    sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in str(getattr(finder, "__module__", ""))]
    try:
        function = BENCHMARKS[name](device)

        def sample(number: int) -> float:
            start = time.perf_counter()
            for _ in range(number):
                function()
            if device != "cpu":
                torch.cuda.synchronize()
            return time.perf_counter() - start

        sample(2)
        number = max(1, int(SAMPLE / sample(1)))
    except Exception as error:  # The other commit may lack what is compared.
        print(json.dumps({"failure": f"{type(error).__name__}: {error}"[:300]}), flush=True)
        return
    print(json.dumps({"ready": True}), flush=True)
    for _ in sys.stdin:
        print(json.dumps({"seconds": sample(number) / number}), flush=True)


class Worker(AbstractContextManager["Worker"]):
    """A process in which `fastdm` is the build in a folder, and `bench` is the working tree's."""

    def __init__(self, name: str, device: str, build: Path) -> None:
        # A folder that holds nothing but bench/: the working tree's own fastdm/ must not be found first.
        alone = build / "run"
        alone.mkdir(exist_ok=True)
        if not (alone / "bench").exists():
            (alone / "bench").symlink_to(results.REPOSITORY / "bench")
            (alone / "tests").symlink_to(results.REPOSITORY / "tests")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.compare", "--worker", name, "--device", device],
            cwd=alone,
            env={**os.environ, "PYTHONPATH": str(build / "lib")},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.failure = self._read().get("failure")

    def sample(self) -> float:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return float(self._read()["seconds"])

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        found: dict[str, Any] = json.loads(line) if line else {"failure": "it ended"}
        return found

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def build(tree: Path, into: Path) -> None:
    """The package of a tree, with its extension, into a folder `lib` that can be put on the path."""
    command = [
        sys.executable,
        "setup.py",
        "--quiet",
        "build",
        "--build-base",
        str(into),
        "--build-lib",
        str(into / "lib"),
    ]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{tree} could not be built:\n{done.stderr[-2000:]}")


def compare(name: str, device: str, builds: dict[str, Path], rounds: int) -> str:
    """A line with the ratio of the times there and here, and its spread over the rounds."""
    there, here = builds
    with Worker(name, device, builds[there]) as before, Worker(name, device, builds[here]) as now:
        if failure := before.failure or now.failure:
            return f"{name:24} {failure}"
        pairs = [(before.sample(), now.sample()) for _ in range(rounds)]
    ratio = results.spread([old / new for old, new in pairs])
    medians = [results.spread(times)["median"] * 1e3 for times in zip(*pairs, strict=True)]
    return (
        f"{name:24} {ratio['median']:.3f} ({ratio['p20']:.3f}..{ratio['p80']:.3f})   "
        f"{there} {medians[0]:.4g} ms, {here} {medians[1]:.4g} ms, {rounds} rounds"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rev", nargs="?", metavar="REV", help="anything that git rev-parse knows")
    parser.add_argument("--only", nargs="+", choices=BENCHMARKS, default=list(BENCHMARKS))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments.worker, arguments.device)
        return
    if arguments.rev is None:
        parser.error("name the commit to compare with")

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(results.REPOSITORY), *words], check=True, capture_output=True, text=True
        ).stdout.strip()

    with tempfile.TemporaryDirectory() as temporary:
        other, here = Path(temporary) / "tree", Path(temporary) / "here"
        git("worktree", "add", "--detach", str(other), arguments.rev)
        try:
            short = git("rev-parse", "--short", arguments.rev)
            builds = {short: Path(temporary) / "there", "here": here}
            build(other, builds[short])
            build(results.REPOSITORY, here)
            for name in arguments.only:
                print(compare(name, arguments.device, builds, arguments.rounds), flush=True)
        finally:
            git("worktree", "remove", "--force", str(other))


if __name__ == "__main__":
    main()
