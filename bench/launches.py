"""How many ops an iteration calls and how many bytes it allocates, counted by dispatch: figures without noise.

python -m bench.launches

Counted are the calls that do work on tensors, which on a GPU are launches of one kernel or more: ATen ops that are not
views or bare allocations, and the ops of `fastdm.kernels`, each as one. Bytes are those of every new result. The shapes
are small and all classes lie in one chunk: the count of ops does not depend on the sizes. "device" is the path of a
GPU, followed on the CPU by telling the package that it has no C++ form of a whole block.
"""

import argparse
from collections import Counter
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bench import results
from bench.iteration import PublicLoop
from bench.workloads import CPU, Workload
from fastdm.condensation.build import build_step
from fastdm.kernels import stores_only_pooled

CLASSES = (10, 100)
_ALLOCATIONS = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}


class Count(TorchDispatchMode):
    """calls: number of calls of each op that does work; bytes: of all new results."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: Counter[str] = Counter()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func._schema.name
        if not func.is_view and name.removeprefix("aten::") not in _ALLOCATIONS:
            self.calls[name] += 1
        for tensor, declared in zip(
            result if isinstance(result, tuple | list) else (result,), func._schema.returns, strict=False
        ):
            if isinstance(tensor, Tensor) and declared.alias_info is None:
                self.bytes += tensor.numel() * tensor.element_size()
        return result


def workload(classes: int) -> Workload:
    return Workload(f"{classes} classes", classes, 16, 1, 8, batch_real=4, network="ConvNetW32")


def count_step(classes: int, aug_mode: str, path: str) -> Count:
    """One iteration of the package with all classes in one chunk. path: "cpu" or "device"."""
    work = workload(classes)
    settings = work.settings(aug_mode=aug_mode, precision="fp32").resolve(work.dataset(CPU), CPU)
    step, plan = build_step(work.dataset(CPU), settings, CPU, torch.float32, chunk_memory=1 << 34)
    assert plan.chunk_classes == classes
    fused = path == "cpu" and stores_only_pooled(torch.empty(1, 3, 16, 16), torch.empty(32, 3, 3, 3))
    with mock.patch("fastdm.kernels.blocks.native.takes_conv_norm_relu_pool", return_value=fused):
        step(0)  # The first iteration has more to do.
        count = Count()
        with count:
            step(1)
    return count


def count_public(classes: int, aug_mode: str) -> Count:
    """One iteration of the public loop."""
    work = workload(classes)
    loop = PublicLoop(work.dataset(CPU), work.settings(aug_mode=aug_mode), CPU)
    count = Count()
    with count:
        loop(0)
    return count


def measure() -> list[dict[str, Any]]:
    rows = []
    for aug_mode in ("S", "M"):
        for loop in ("cpu", "device", "public"):
            counts = {
                classes: count_public(classes, aug_mode) if loop == "public" else count_step(classes, aug_mode, loop)
                for classes in CLASSES
            }
            row: dict[str, Any] = {"name": f"{loop}, mode {aug_mode}", "loop": loop, "aug_mode": aug_mode}
            for classes, count in counts.items():
                row[f"ops_{classes}_classes"] = count.calls.total()
                row[f"bytes_{classes}_classes"] = count.bytes
            row["most_called"] = dict(counts[CLASSES[0]].calls.most_common(8))
            rows.append(row)
    return rows


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    torch.set_num_threads(1)
    rows = measure()
    for row in rows:
        print(row)
    print(results.save("launches", rows, {"classes": list(CLASSES), "images": "3×16×16", "network": "ConvNetW32"}))


if __name__ == "__main__":
    main()
