"""How many bytes the ops move, counted by code beside the plain PyTorch that they replace: no GPU is needed.

python -m bench.traffic

The kernels run in Triton's interpreter, which is told to note every address: an element that is read, or written,
counts once in a launch, as if the cache held an image. That a tile is loaded once where it fits is the compile check's
to show. Plain PyTorch is counted by dispatch, every operation reading its arguments and writing its results once, which
is less than some do: group_norm reads its input twice.
"""

import argparse
import os

os.environ["TRITON_INTERPRET"] = "1"  # Triton reads it when it is imported.

from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bench import public_loop, results
from fastdm.augmentation import FAMILIES, Strategy
from fastdm.kernels import class_mean_difference, dsa, norm_relu_pool, norm_relu_pool_mean

STRATEGY = "_".join(FAMILIES)
_ALLOCATIONS = {"aten::empty", "aten::empty_like", "aten::empty_strided", "aten::new_empty"}


class Eager(TorchDispatchMode):
    """bytes: of the arguments and results of every operation."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view and func._schema.name not in _ALLOCATIONS:
            for value in tree_leaves((args, kwargs, result)):
                if isinstance(value, Tensor):  # An expanded one is as large as what it repeats.
                    self.bytes += min(value.numel() * value.element_size(), value.untyped_storage().nbytes())
        return result


def eager(function: Callable[[], object]) -> int:
    count = Eager()
    with count:
        function()
    return count.bytes


def kernels(function: Callable[[], object]) -> tuple[int, int]:
    """Bytes that the interpreted kernels of a call read and write."""
    from triton.runtime import interpreter

    builder = type(interpreter.interpreter_builder)
    moved = {"create_masked_load": 0, "create_masked_store": 0}
    seen: dict[str, list[Any]] = {name: [] for name in moved}

    def noting(name: str, position: int) -> Callable[..., Any]:
        inner = getattr(builder, name)

        def call(self: Any, pointers: Any, *args: Any) -> Any:
            addresses = np.broadcast_to(pointers.data, args[position].data.shape)[args[position].data]
            size = pointers.get_element_ty().primitive_bitwidth // 8
            seen[name].append(np.stack([addresses.ravel().astype(np.int64), np.full(addresses.size, size)]))
            return inner(self, pointers, *args)

        return call

    from fastdm.kernels import launch

    start = launch.start

    def count(*args: Any, **kwargs: Any) -> None:
        start(*args, **kwargs)
        for name, parts in seen.items():
            moved[name] += int(np.unique(np.concatenate(parts, 1), axis=1)[1].sum()) if parts else 0
            parts.clear()

    with (
        mock.patch.object(builder, "create_masked_load", noting("create_masked_load", 0)),
        mock.patch.object(builder, "create_masked_store", noting("create_masked_store", 1)),
        mock.patch.object(launch, "start", count),
    ):
        function()
    return moved["create_masked_load"], moved["create_masked_store"]


def row(name: str, unit: str, size: int, ours: tuple[float, float], plain: float) -> dict[str, Any]:
    """Everything in units of ``size`` bytes."""
    read, written = (value / size for value in ours)
    return {"name": name, "unit": unit, "read": read, "written": written, "ours": read + written, "eager": plain / size}


def augmentation(families: str) -> dict[str, list[float]]:
    """Read, written, and moved by plain PyTorch, all in units of the batch in float32; every family is applied."""
    n, shape = 4, (3, 32, 32)
    generator = torch.Generator().manual_seed(0)
    pool = torch.randint(0, 256, (n, *shape), generator=generator, dtype=torch.uint8)
    batch, grad = torch.randn(2, n, *shape, generator=generator)
    mean = std = torch.full((3,), 0.5)
    index = group = torch.arange(n)
    (rows,) = Strategy.parse(families, "M").draw(torch.tensor([0, 1]), torch.arange(n), shape[1:])
    leaf = batch.clone().requires_grad_()
    out = dsa(leaf, rows, group)

    # A batch as large as DM's for the public code, in which what does not grow with the batch is nothing.
    large, large_grad = torch.randn(2, 256, *shape, generator=generator)
    large_leaf = large.clone().requires_grad_()
    large_out = public_loop.diff_augment(large_leaf, families, 0, "M")
    forward = eager(lambda: public_loop.diff_augment(large, families, 0, "M"))
    backward = eager(lambda: torch.autograd.grad(large_out, large_leaf, large_grad))

    def read() -> Tensor:
        return dsa(pool, rows, group, index=index, mean=mean, std=std, dtype=torch.bfloat16, channels_last=True)

    return {
        kind: [*(moved / (4 * batch.numel()) for moved in kernels(call)), plain / (4 * large.numel())]
        for kind, call, plain in (
            ("uint8 → bfloat16", read, forward),
            ("float32", lambda: dsa(batch, rows, group), forward),
            ("gradient, float32", lambda: torch.autograd.grad(out, leaf, grad), backward),
        )
    }


def augmentations() -> Iterator[dict[str, Any]]:
    """P is the batch in float32. In mode S the mean over the families."""
    for mode, strategies in (("S", FAMILIES), ("M", (STRATEGY,))):
        counts = [augmentation(families) for families in strategies]
        for kind in counts[0]:
            read, written, plain = np.mean([count[kind] for count in counts], 0).tolist()
            yield row(f"dsa {kind}, mode {mode}", "P", 1, (read, written), plain)


def others() -> Iterator[dict[str, Any]]:
    """X is the op's input; a class has 32 images."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 16, 32, 32, generator=generator).bfloat16().contiguous(memory_format=torch.channels_last)
    size = 2 * x.numel()

    def plain(x: Tensor) -> Tensor:
        return F.avg_pool2d(F.relu(F.group_norm(x, x.shape[1])), 2)

    def class_means(x: Tensor) -> list[Tensor]:
        return [part.mean(0) for part in x.split(32)]

    leaf, wide = x.clone().requires_grad_(), x.clone().requires_grad_()
    outs = norm_relu_pool(leaf), plain(wide)
    grad = torch.ones_like(outs[0])
    yield row("norm_relu_pool", "X", size, kernels(lambda: norm_relu_pool(x)), eager(lambda: plain(x)))
    yield row(
        "norm_relu_pool, gradient",
        "X",
        size,
        kernels(lambda: torch.autograd.grad(outs[0], leaf, grad)),
        eager(lambda: torch.autograd.grad(outs[1], wide, grad)),
    )
    last = torch.randn(64, 16, 8, 8, generator=generator).bfloat16().contiguous(memory_format=torch.channels_last)
    offsets = torch.tensor([0, 32, 64])
    yield row(
        "norm_relu_pool_mean",
        "X",
        2 * last.numel(),
        kernels(lambda: norm_relu_pool_mean(last, offsets)),
        eager(lambda: class_means(plain(last))),
    )
    real, synthetic = torch.randn(2, 64, 512, generator=generator)

    def loss() -> Tensor:
        pairs = zip(class_means(real), class_means(synthetic), strict=True)
        return torch.stack([(one - other).square().sum() for one, other in pairs]).sum()

    yield row(
        "class_mean_difference",
        "X",
        2 * 4 * real.numel(),
        kernels(lambda: class_mean_difference(real, synthetic, offsets, offsets)),
        eager(loss),
    )


def measure() -> list[dict[str, Any]]:
    return [*augmentations(), *others()]


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    rows = measure()
    for found in rows:
        print(found)
    print(results.save("traffic", rows, {}))


if __name__ == "__main__":
    main()
