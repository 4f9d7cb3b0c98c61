"""One op on one shape, next to plain PyTorch: what the benchmark of the kernels checks and times."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench.harness.records import Row, judged

Arguments = tuple[Any, ...]

EPS = torch.finfo(torch.float32).eps
_DENSITY = 0.4  # of N(0, 1) at 0


@dataclass(frozen=True)
class Case:
    """One op on one shape.

    name: begins with that of the op in `fastdm.kernels`. draw: fresh random arguments. run, eager: the op and plain
        PyTorch on them; in float64 the latter is the yardstick of the former.
    bytes: the least that must move. flops: of the formula, about; 0 where it computes with integers.
    rounding: the relative error that float32 may have however its sums are ordered; an output of fewer bits may have
        one of its own. None where both must give the same bits.
    relu: the relative error of what goes into a ReLU whose gradient is computed. An activation that rounding takes to
        the other side of it has a wrong gradient entry: 2 · relu · φ(0) of them, by whose root the whole gradient is
        off. Twice that is allowed, and where an image has less than one the strict tolerance holds for their median.
    """

    name: str
    draw: Callable[[], Arguments]
    run: Callable[..., Any]
    eager: Callable[..., Any]
    bytes: int
    flops: int
    rounding: float | None
    relu: float = 0.0

    @property
    def op(self) -> str:
        return self.name.split()[0]

    def make(self, seed: int, device: torch.device) -> Arguments:
        torch.manual_seed(seed)
        with device:
            return self.draw()


def check(case: Case, values: Arguments) -> Row:
    """error and tolerance, both ‖difference‖ / ‖exact‖; of ops that give the same bits the share that differs."""
    ours = _tensors(case.run(*values))
    if case.rounding is None:
        pairs = [*zip(ours, _tensors(case.eager(*values)), strict=True)]
        error = sum(int((a != b).sum()) for a, b in pairs) / sum(a.numel() for a in ours)
        return judged(error, 0.0)
    wide = [v.detach().double().requires_grad_(v.requires_grad) if v.is_floating_point() else v for v in values]
    found = judged(0.0, 0.0)
    for number, (result, exact) in enumerate(zip(ours, _tensors(case.eager(*wide)), strict=True)):
        difference = result.double() - exact
        error = float(difference.norm() / exact.norm())
        allowed = max(case.rounding, torch.finfo(result.dtype).eps)
        if case.relu and number:
            share = 2 * case.relu * _DENSITY
            of_images, flips = len(result) == len(ours[0]), share * ours[0][0].numel()
            if of_images and flips < 1:  # in an image: most images have none
                by_image = difference.flatten(1).norm(dim=1) / exact.flatten(1).norm(dim=1)
                found |= {"median_error": float(by_image.median()), "median_tolerance": allowed}
                found["correct"] &= found["median_error"] <= found["median_tolerance"]
            allowed = max(allowed, 2 * math.sqrt(share))
        found["correct"] &= error <= allowed  # False for NaN as well.
        found |= {"error": max(found["error"], error), "tolerance": max(found["tolerance"], allowed)}
    return found


def _tensors(result: Any) -> Sequence[Tensor]:
    return [tensor.detach() for tensor in (result if isinstance(result, tuple) else (result,))]
