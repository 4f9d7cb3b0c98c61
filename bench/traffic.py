"""How many bytes the ops move, counted by code, and those of the plain PyTorch that they replace: no GPU is needed.

The kernels run in Triton's interpreter, which notes every address. That a tile is loaded once where it fits, the
compile check shows. Plain PyTorch is counted by dispatch, which is less than some operations move: group_norm reads its
input twice.
"""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import lru_cache, partial
from itertools import chain, product
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from bench.baselines.plain_step import layers
from bench.baselines.public_augment import Param, diff_augment
from bench.harness import arguments, records
from bench.harness.counter import OpCounter
from bench.harness.records import Row, Suite
from fastdm.augmentation import FAMILIES, Strategy
from fastdm.kernels import class_mean_difference, dsa, norm_relu_pool, norm_relu_pool_mean

COMPILED_ROOM = 4096
"""Windows · channels of a tile where kernels are compiled: the interpreter takes larger ones."""


def interpret() -> None:
    """Have Triton interpret the kernels of this process, in which nothing must have imported it yet."""
    if "triton" in sys.modules and os.environ.get("TRITON_INTERPRET") != "1":
        raise RuntimeError("triton was imported before it could be set to interpret: count in a process of its own")
    os.environ["TRITON_INTERPRET"] = "1"


@contextmanager
def watched(show: Callable[[str, Any, Any, int], None]) -> Iterator[None]:
    """Show what interpreted kernels "load" and "store": which, where they are, the addresses, and the bytes of each."""
    from triton.runtime import interpreter  # Only now: see `interpret`.

    builder = type(interpreter.interpreter_builder)

    def showing(name: str) -> AbstractContextManager[Any]:
        inner = getattr(builder, f"create_masked_{name}")

        def call(self: Any, pointers: Any, *args: Any) -> Any:
            mask = args[name == "store"].data  # behind the values that are stored
            addresses = np.broadcast_to(pointers.data, mask.shape)[mask].astype(np.int64)
            show(name, self.grid_idx, addresses, pointers.get_element_ty().primitive_bitwidth // 8)
            return inner(self, pointers, *args)

        return mock.patch.object(builder, f"create_masked_{name}", call)

    with showing("load"), showing("store"):
        yield


def kernels(function: Callable[[], object]) -> tuple[int, int]:
    """Bytes that the interpreted kernels of a call read and write."""
    from fastdm.kernels import launch

    start, moved = launch.start, {"load": 0, "store": 0}
    seen: dict[str, dict[int, int]] = {name: {} for name in moved}

    def note(name: str, _: Any, addresses: Any, size: int) -> None:
        seen[name].update(dict.fromkeys(addresses.tolist(), size))

    def count(*args: Any, **kwargs: Any) -> None:
        start(*args, **kwargs)
        for name, elements in seen.items():
            moved[name] += sum(elements.values())
            elements.clear()

    with watched(note), mock.patch.object(launch, "start", count):
        function()
    return moved["load"], moved["store"]


def memory_reads(function: Callable[[], object], sector: int, cache: int) -> int:
    """Bytes that a call reads from memory in sectors, behind a cache of so many bytes that drops what is oldest.

    The programs run in the order of a GPU, the first axis of the grid fastest, and their tiles are those that are
    compiled.
    """
    from fastdm.kernels.blocks import triton_tiles as tiles

    touched: dict[tuple[int, ...], list[int]] = {}

    def note(name: str, program: tuple[int, ...], addresses: Any, _: int) -> None:
        if name == "load":
            touched.setdefault(program[::-1], []).extend(np.unique(addresses // sector).tolist())

    with watched(note), mock.patch.object(tiles, "ROOM", COMPILED_ROOM):
        function()
    fetch = lru_cache(cache // sector)(lambda number: number)
    for number in chain.from_iterable(touched[program] for program in sorted(touched)):
        fetch(number)
    return sector * fetch.cache_info().misses


def eager(function: Callable[[], object]) -> int:
    """Bytes that plain PyTorch moves in a call."""
    with OpCounter() as count:
        function()
    return count.moved


def row(name: str, unit: str, size: float, ours: Sequence[float], plain: float) -> Row:
    """Everything in units of `size` bytes."""
    read, written = (value / size for value in ours)
    return {"name": name, "unit": unit, "read": read, "written": written, "ours": read + written, "eager": plain / size}


def gradient(op: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], object]:
    leaf = x.clone().requires_grad_()
    out = op(leaf)
    return partial(torch.autograd.grad, out, leaf, torch.ones_like(out), retain_graph=True)


def augmentation(families: str) -> dict[str, list[float]]:
    """Read, written, and moved by plain PyTorch, all in units of the batch in float32; every family is applied."""
    n, shape = 4, (3, 32, 32)
    pool = torch.randint(0, 256, (n, *shape), dtype=torch.uint8)
    # A batch as large as DM's for the public code, in which what does not grow with the batch is nothing.
    batch, large = (torch.randn(size, *shape) for size in (n, 256))
    mean = std = torch.full((3,), 0.5)
    index = group = torch.arange(n)
    (rows,) = Strategy.parse(families, "M").draw(torch.tensor([0, 1]), torch.arange(n), shape[1:])
    ours = partial(dsa, table=rows, group=group)
    public = partial(diff_augment, strategy=families, seed=0, param=Param("M"))
    read = partial(ours, pool, index=index, mean=mean, std=std, dtype=torch.bfloat16, channels_last=True)
    forward = eager(partial(public, large))
    calls: dict[str, tuple[Callable[[], object], int]] = {
        "uint8 → bfloat16": (read, forward),
        "float32": (partial(ours, batch), forward),
        "gradient, float32": (gradient(ours, batch), eager(gradient(public, large))),
    }
    return {
        kind: [*(moved / batch.nbytes for moved in kernels(call)), plain / large.nbytes]
        for kind, (call, plain) in calls.items()
    }


def augmentations() -> Iterator[Row]:
    """P is the batch in float32. In mode S the mean over the families."""
    for mode, strategies in (("S", FAMILIES), ("M", ("_".join(FAMILIES),))):
        counts = [augmentation(families) for families in strategies]
        for kind in counts[0]:
            read, written, plain = np.mean([count[kind] for count in counts], 0).tolist()
            yield row(f"dsa {kind}, mode {mode}", "P", 1, (read, written), plain)


def others() -> Iterator[Row]:
    """X is the op's input; a class has 32 images."""

    def images(*shape: int) -> Tensor:
        return torch.randn(*shape).bfloat16().contiguous(memory_format=torch.channels_last)

    def class_means(x: Tensor) -> list[Tensor]:
        return [part.mean(0) for part in x.split(32)]

    def loss() -> Tensor:
        pairs = zip(class_means(real), class_means(synthetic), strict=True)
        return torch.stack([(one - other).square().sum() for one, other in pairs]).sum()

    x, last, large = images(4, 16, 32, 32), images(64, 16, 8, 8), images(6, 32, 64, 64)
    offsets = torch.tensor([0, 32, 64])
    real, synthetic = torch.randn(2, 64, 512)
    back, plain_back = gradient(norm_relu_pool, x), gradient(layers, x)
    mean, plain_mean = partial(norm_relu_pool_mean, last, offsets), lambda: class_means(layers(last))
    difference = partial(class_mean_difference, real, synthetic, offsets, offsets)
    yield row("norm_relu_pool", "X", x.nbytes, kernels(partial(norm_relu_pool, x)), eager(partial(layers, x)))
    yield row("norm_relu_pool, gradient", "X", x.nbytes, kernels(back), eager(plain_back))
    yield row("norm_relu_pool_mean", "X", last.nbytes, kernels(mean), eager(plain_mean))
    yield row("class_mean_difference", "X", real.nbytes + synthetic.nbytes, kernels(difference), eager(loss))
    yield from first_block()
    # Images of 64² pixels, larger than a tile, with a cache of two images: on a GPU there are thousands of images in a
    # launch and tens in the cache. Plain PyTorch reads x once an operation.
    calls: dict[str, Callable[[], object]] = {"": partial(norm_relu_pool, large)}
    calls[", gradient"] = gradient(norm_relu_pool, large)
    for (kind, call), sector in product(calls.items(), (32, 64)):
        read = memory_reads(call, sector, cache=2 * large[0].nbytes)
        name = f"norm_relu_pool{kind} 64², reads of memory in {sector} B"
        yield row(name, "X", large.nbytes, (read, 0), large.nbytes)


def first_block() -> Iterator[Row]:
    """Y is the convolution's output, of 128 channels, which is stored or computed twice."""
    x, weight = (
        torch.randn(shape).half().contiguous(memory_format=torch.channels_last)
        for shape in ((2, 3, 32, 32), (128, 3, 3, 3))
    )
    conv = torch.conv2d(x, weight, padding=1)
    plain = eager(lambda: layers(torch.conv2d(x, weight, padding=1)))
    read, written = kernels(lambda: norm_relu_pool(conv))
    stored = (read + x.nbytes + weight.nbytes, written + conv.nbytes)
    twice = kernels(lambda: torch.ops.fastdm.conv_norm_relu_pool(x, weight, None, None, 1, 1e-5, False))
    for way, moved in (("stored", stored), ("computed twice", twice)):
        yield row(f"conv_norm_relu_pool, first convolution {way}", "Y", conv.nbytes, moved, plain)


def measure(smoke: bool = False) -> Iterator[Row]:
    interpret()
    yield from () if smoke else augmentations()
    yield from others()


SUITE = Suite(
    "traffic",
    "Bytes that the kernels move",
    "An element counts once per launch, as with a cache that holds an image; plain PyTorch is the public code's form, "
    "every operation counted as reading its arguments and writing its results once. P: the batch in float32; X: the "
    "input of the op; Y: the result of its convolution.",
    ("kernels",),
    "op | name; read | read | unit; written | written | unit; together | ours | unit; plain PyTorch | eager | unit",
    everywhere=True,
)


if __name__ == "__main__":
    records.record(SUITE, arguments.parser(__doc__).parse_args(), lambda options: measure(options.smoke))
