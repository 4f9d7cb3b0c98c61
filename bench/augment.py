"""`DiffAugment` against the public function, from one image to 1,024.

    python -m bench.augment [--images 1 10 256 1024] [--threads 1 2] [--rounds 60]

A round calls both, the public one first, so that they meet the same weather; a ratio is the median over the rounds of
public / fastdm. All six families in mode S, as in the public code's default, and in mode M. The clock is that of the
calling thread with one thread, and the wall's with more.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

import fastdm
from bench.baselines.public_augment import diff_augment
from fastdm.augmentation import DSA_STRATEGY


def pair(
    count: int, siamese: bool, backward: bool, mode: str, strategy: str = DSA_STRATEGY
) -> tuple[Callable[[int], None], Callable[[int], None]]:
    """The public call and ours; the argument decides the draws."""
    images = torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(0)).requires_grad_(backward)
    grad = torch.ones_like(images)
    param = fastdm.ParamDiffAug()
    param.aug_mode = mode

    def run(function: Callable[..., Tensor], seed: int) -> None:
        if not siamese:
            torch.default_generator.manual_seed(seed)
        out = function(images, strategy, seed if siamese else -1, param)
        if out.requires_grad:
            torch.autograd.grad(out, images, grad)

    return lambda seed: run(diff_augment, seed), lambda seed: run(fastdm.DiffAugment, seed)


def in_turns(
    functions: Sequence[Callable[[int], None]], rounds: int, clock: Callable[[], float]
) -> list[tuple[float, ...]]:
    """Seconds of each function in every round."""
    samples = []
    for seed in range(rounds + 3):
        times = []
        for function in functions:
            start = clock()
            function(seed)
            times.append(clock() - start)
        samples.append(tuple(times))
    return samples[3:]


def rows(arguments: argparse.Namespace) -> Iterator[tuple[str, ...]]:
    yield "threads", "mode", "draws", "N", "direction", "public, ms", "fastdm, ms", "ratio"
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        clock = time.thread_time if threads == 1 else time.perf_counter
        for mode in ("S", "M"):
            for siamese in (True, False):
                for count in arguments.images:
                    for backward in (False, True):
                        rounds = max(12, arguments.rounds // (1 if count <= 10 else 4))
                        samples = in_turns(pair(count, siamese, backward, mode), rounds, clock)
                        public, ours = (statistics.mean(times) * 1e3 for times in zip(*samples, strict=True))
                        ratio = statistics.median(theirs / mine for theirs, mine in samples)
                        draws = "Siamese" if siamese else "per image"
                        direction = "with gradient" if backward else "forward"
                        cells = f"{public:.3f}", f"{ours:.3f}", f"{ratio:.2f}"
                        yield str(threads), mode, draws, str(count), direction, *cells


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, nargs="+", default=[1, 10, 256, 1024])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=60)
    for number, cells in enumerate(rows(parser.parse_args())):
        print("| " + " | ".join(cells) + " |", flush=True)
        if number == 0:
            print("|---" * len(cells) + "|")


if __name__ == "__main__":
    main()
