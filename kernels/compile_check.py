"""Compile every kernel for several GPUs, without the GPU present, and check the machine code.

`python -m fastdm.kernels.compile_check` runs the launchers on tensors without memory (device "meta") for the shapes
and dtypes of the presets, compiles what they would have started, and reads registers, spills, shared memory and the
widths of memory accesses from the result. `--json FILE` writes the reports, `--budget FILE` fails on more registers
than recorded there. Any spill fails, and so do narrower accesses than the layout allows.
"""

import argparse
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from . import launch, row_means
from .augmentation import triton as augmentation
from .blocks import triton as blocks
from .class_means import triton as class_means
from .cross_entropy import triton as cross_entropy
from .random import triton as random
from .sgd import triton as sgd
from .snapshots import triton as snapshots

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}


@dataclass(frozen=True)
class Case:
    """One use of an op.

    wide: bytes of the widest load and store that the layout allows in every access of a tile, 0 for gathers.
    """

    name: str
    run: Callable[[], object]
    wide: int = 0


@dataclass(frozen=True)
class Report:
    """What one kernel became on one target; sizes in bytes per thread or program, accesses as width -> count."""

    case: str
    kernel: str
    target: str
    warps: int
    registers: int
    spills: int
    shared: int
    loads: dict[str, int]
    stores: dict[str, int]
    instructions: int
    wide: int

    @classmethod
    def of(cls, record: dict[str, Any]) -> "Report":
        """Return the report that `asdict` made a record of, which may hold more."""
        return cls(**{field.name: record[field.name] for field in fields(cls)})


# --- what is compiled ------------------------------------------------------------------------------------------------


def _meta(*shape: int, dtype: torch.dtype = torch.float32, last: bool = False) -> Tensor:
    memory_format = torch.channels_last if last else torch.contiguous_format
    return torch.empty(shape, dtype=dtype, device="meta", memory_format=memory_format)


def _index(*shape: int) -> Tensor:
    return _meta(*shape, dtype=torch.int64)


def _name(dtype: torch.dtype) -> str:
    return {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.uint8: "u8"}[dtype]


def _augmentation_cases() -> Iterator[Case]:
    bf16, fp16, fp32, u8 = torch.bfloat16, torch.float16, torch.float32, torch.uint8
    # Real images: a gather out of the pool. CIFAR and TinyImageNet, a grey one and a large one.
    for c, size, dtype, last in (
        (3, 32, bf16, True),
        (3, 32, fp32, False),
        (3, 32, fp16, False),
        (3, 64, bf16, True),
        (1, 28, fp32, False),
        (3, 224, bf16, True),
    ):
        images, table, mean = _meta(50_000, c, size, size, dtype=u8), _meta(10, 16), _meta(c)
        name = f"dsa u8->{_name(dtype)} {c}x{size}² {'nhwc' if last else 'nchw'}"
        args: tuple[Any, ...] = (images, table, _index(2560), _index(2560), mean, mean, dtype, last)
        yield Case(name, partial(augmentation.dsa, *args))
    # Synthetic images, forward and backward.
    for c, size, dtype, last in ((3, 32, bf16, True), (3, 32, fp32, False), (3, 64, bf16, True), (1, 28, fp32, False)):
        images, table = _meta(100, c, size, size), _meta(10, 16)
        name = f"{c}x{size}² {'nhwc' if last else 'nchw'}"
        args = (images, table, _index(100), None, None, None, dtype, last)
        grad = (_meta(100, c, size, size, dtype=dtype, last=last), table, _index(100), fp32)
        yield Case(f"dsa fp32->{_name(dtype)} {name}", partial(augmentation.dsa, *args))
        yield Case(f"dsa {_name(dtype)}->fp32 {name}", partial(augmentation.dsa_backward, *grad))


def _block_cases() -> Iterator[Case]:
    bf16, fp32 = torch.bfloat16, torch.float32
    # Blocks of ConvNet-3 at 32² and ConvNet-4 at 64².
    for size, dtype, last in (
        (64, bf16, True),
        (32, bf16, True),
        (16, bf16, True),
        (8, bf16, True),
        (32, fp32, True),
        (32, bf16, False),
        (64, fp32, False),
        (32, fp32, False),
        (16, fp32, False),
        (8, fp32, False),
    ):
        x = _meta(100, 128, size, size, dtype=dtype, last=last)
        grad_out = _meta(100, 128, size // 2, size // 2, dtype=dtype, last=last)
        statistics = _meta(100, 128)
        name = f"norm_relu_pool {_name(dtype)} 128x{size}² {'nhwc' if last else 'nchw'}"
        plain = (None, None, 1e-5, "relu", "avg")
        back = (grad_out, x, statistics, statistics, None, None, "relu", "avg")
        yield Case(name, partial(blocks.norm_relu_pool, x, *plain), 16)
        yield Case(name, partial(blocks.norm_relu_pool_backward, *back), 16)
        if size == 8:
            yield Case(name, partial(blocks.norm_relu_pool_mean, x, _index(11), *plain), 16)
        if size == 8 and last:
            flat = (grad_out.contiguous(), *back[1:])  # the gradient of flattened features
            yield Case(f"{name}, flat gradient", partial(blocks.norm_relu_pool_backward, *flat))
    # The other activations and poolings, and the affine part, once.
    x = _meta(100, 128, 16, 16, dtype=bf16, last=True)
    weight, grad_out = _meta(128), _meta(100, 128, 8, 8, dtype=bf16, last=True)
    for activation, pool in (("leakyrelu", "max"), ("swish", "none"), ("sigmoid", "avg")):
        name = f"norm_relu_pool bf16 128x16² nhwc {activation} {pool} affine"
        backward = (x if pool == "none" else grad_out, x, _meta(100, 128), _meta(100, 128), weight, weight)
        yield Case(name, partial(blocks.norm_relu_pool, x, weight, weight, 1e-5, activation, pool), 16)
        yield Case(name, partial(blocks.norm_relu_pool_backward, *backward, activation, pool), 16)


def _conv_cases() -> Iterator[Case]:
    # The first blocks of ConvNets, on real images: the CIFARs, grey ones, Tiny ImageNet, large ones.
    bf16, fp16 = torch.bfloat16, torch.float16
    for c, size, padding, dtype in (
        (3, 32, 1, bf16),
        (3, 32, 1, fp16),
        (1, 28, 3, bf16),
        (3, 64, 1, bf16),
        (3, 224, 1, bf16),
    ):
        x, weight = (_meta(*shape, dtype=dtype, last=True) for shape in ((2560, c, size, size), (128, c, 3, 3)))
        run = partial(blocks.conv_norm_relu_pool, x, weight, None, None, padding, 1e-5, False)
        yield Case(f"conv_norm_relu_pool {_name(dtype)} {c}x{size}² to 128 channels", run)
        # On synthetic images, with a gradient to them.
        pooled = (size + 2 * padding - 2) // 2
        grad, statistics = _meta(100, 128, pooled, pooled, dtype=dtype, last=True), _meta(100, 128)
        back = partial(blocks.conv_norm_relu_pool_backward_x, grad, x[:100], statistics, statistics, weight, padding)
        yield Case(f"conv_norm_relu_pool gradient {_name(dtype)} {c}x{size}² to 128 channels", back)


def _class_mean_cases() -> Iterator[Case]:
    for dtype in (torch.bfloat16, torch.float32):
        features, offsets = _meta(2560, 2048, dtype=dtype), _index(11)
        name = f"class_mean_difference {_name(dtype)} 2048"
        yield Case(name, partial(class_means.class_mean_difference, features, features, offsets, offsets, "zero"), 16)
        yield Case(f"class_means {_name(dtype)} 2048", partial(row_means.class_means, features, offsets), 16)
        c = (_meta(10, 2048), features, None, offsets, "zero")
        yield Case(f"{name}, real means", partial(class_means.class_mean_difference, *c), 16)
        b = (_meta(), _meta(10, 2048), offsets, 100, dtype)
        yield Case(name, partial(class_means.class_mean_difference_backward, *b), 16)
        for n, classes in ((400, 10), (4000, 1000)):
            name, d = f"cross_entropy {_name(dtype)} {n}x{classes}", (_meta(n, classes, dtype=dtype), _index(n), 0.1)
            yield Case(name, partial(cross_entropy.cross_entropy, *d))
            yield Case(name, partial(cross_entropy.cross_entropy_backward, _meta(), *d))


def _random_cases() -> Iterator[Case]:
    yield Case("uniform 10x16", partial(random.uniform, _index(2), _index(10), 16, 2))
    yield Case("uniform 10x36928", partial(random.uniform, _index(2), _index(10), 36_928, 3))
    # ConvNet-3's: its first layer, and one of the others.
    layout, bounds = [0, 0, 128, 3, 9, 3456, 3456, 128, 128, 9], [0.2, 0.03]
    for dtype in (torch.bfloat16, torch.float32):
        weights = (_meta(150_912, dtype=dtype), _index(2), layout, bounds, 3)
        yield Case(f"uniform weights {_name(dtype)} 3x128, 128x128", partial(random.uniform_weights, *weights))
        row, pool = _meta(318_912, dtype=dtype), _meta(10, 51, 318_912, dtype=dtype)
        snapshot = partial(snapshots.draw_snapshots, row, row, pool, _index(2), 5, 2, 6)
        yield Case(f"draw snapshots {_name(dtype)} of ConvNet-3", snapshot, 16)
    tables = (_index(2), _index(10), _index(16), _meta(11, 16), 12)
    for name, runs, choose in (("S", 6, True), ("M", 1, False)):
        yield Case(f"draw tables, mode {name}", partial(random.draw_tables, *tables, runs, choose, False, 2))
    # DM's batch, and twice to the most that can be drawn: as many images per thread as fit, of the widest comparison.
    for n in (256, 2048, 8192):
        yield Case(f"draw 10x{n}", partial(random.draw, _index(2), _index(11), n, _index(10)))
    yield Case("draw with repeats 10x256", partial(random.draw, _index(2), _index(11), 256, _index(10), replace=True))


def _sgd_cases() -> Iterator[Case]:
    images, per_channel = _meta(100, 3, 32, 32), _meta(3, 1, 1)
    arguments = (images, images, images, per_channel, per_channel, per_channel, 0.5)
    yield Case("sgd step 100x3x32²", partial(sgd.sgd_step, *arguments), 16)


def cases() -> Iterator[Case]:
    """Yield the uses that the presets make of every op."""
    yield from _augmentation_cases()
    yield from _block_cases()
    yield from _conv_cases()
    yield from _class_mean_cases()
    yield from _random_cases()
    yield from _sgd_cases()


def launches(case: Case) -> list[tuple[Any, dict[str, Any], dict[str, Any]]]:
    """Return kernel, arguments by name, and options of every kernel that a case would start."""
    found = []

    def record(kernel: Any, grid: tuple[int, ...], *, num_warps: int, **arguments: Any) -> None:
        found.append((kernel, arguments, {"num_warps": num_warps, "enable_fp_fusion": True}))

    with mock.patch.object(launch, "start", record):
        case.run()
    return found


_TYPES = {
    torch.float32: "fp32",
    torch.float64: "fp64",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.uint8: "u8",
    torch.int32: "i32",
    torch.int64: "i64",
}


def _source(kernel: Any, arguments: dict[str, Any]) -> ASTSource:
    """State signature, constants and divisibility as Triton's own launcher does."""
    signature, constants, attributes = {}, {}, {}
    for position, parameter in enumerate(kernel.params):
        value = arguments[parameter.name]
        if parameter.is_constexpr or value is None or (isinstance(value, int) and value == 1):
            signature[parameter.name] = "constexpr"
            constants[(position,)] = value
        elif isinstance(value, Tensor):
            signature[parameter.name] = "*" + _TYPES[value.dtype]
            attributes[(position,)] = [["tt.divisibility", 16]]
        elif isinstance(value, int):
            signature[parameter.name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            if value % 16 == 0:
                attributes[(position,)] = [["tt.divisibility", 16]]
        else:
            signature[parameter.name] = "fp32"
    return ASTSource(kernel, signature, constants, attributes)


# --- machine code ----------------------------------------------------------------------------------------------------

_SASS_ACCESS = re.compile(r"\b(LDG|STG|LDL|STL)\.([A-Z0-9.]+)")
_AMD_ACCESS = re.compile(r"\b(?:global|buffer|flat)_(load|store)_(\w+)")


def _tool(name: str, *args: str) -> str:
    binary = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    return subprocess.run([binary, *args], check=True, capture_output=True, text=True).stdout


def _sass(cubin: bytes) -> tuple[int, int, int, Counter[str], Counter[str], int]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = _tool("cuobjdump", "-res-usage", file.name)
        code = _tool("nvdisasm", "-c", file.name)
    counts: dict[str, Counter[str]] = {"LDG": Counter(), "STG": Counter(), "LDL": Counter(), "STL": Counter()}
    instructions = 0
    for line in code.splitlines():
        instructions += bool(re.match(r"\s*/\*[0-9a-f]{4,}\*/", line))
        if access := _SASS_ACCESS.search(line):
            kind, modifiers = access.groups()
            width = next((w for w in ("128", "64", "U16", "U8", "S16", "S8") if w in modifiers.split(".")), "32")
            counts[kind][width.lstrip("US")] += 1
    registers, shared = (int(re.search(rf"{key}:(\d+)", usage)[1]) for key in ("REG", "SHARED"))  # type: ignore[index]
    spills = counts["LDL"].total() + counts["STL"].total()
    return registers, spills, shared, counts["LDG"], counts["STG"], instructions


def _amdgcn(code: str) -> tuple[int, int, Counter[str], Counter[str], int]:
    registers, *spills = (
        int(re.search(rf"\.{key}:\s*(\d+)", code)[1])  # type: ignore[index]
        for key in ("vgpr_count", "vgpr_spill_count", "sgpr_spill_count")
    )
    counts: dict[str, Counter[str]] = {"load": Counter(), "store": Counter()}
    widths = {"dwordx4": "128", "dwordx3": "96", "dwordx2": "64", "dword": "32", "ushort": "16", "short": "16"}
    for kind, width in _AMD_ACCESS.findall(code):
        name = next((bits for prefix, bits in widths.items() if width.startswith(prefix)), "8")
        counts[kind][name] += 1
    instructions = len(re.findall(r"^\t[vsgbdf]\w*_", code, re.MULTILINE))
    return registers, sum(spills), counts["load"], counts["store"], instructions


def compile_case(number: int, target: str) -> list[Report]:
    """Compile the kernels of one case for one target."""
    case = list(cases())[number]
    reports = []
    for kernel, arguments, options in launches(case):
        compiled = triton.compile(_source(kernel, arguments), target=TARGETS[target], options=options)
        shared = compiled.metadata.shared
        if TARGETS[target].backend == "cuda":
            registers, spills, _, loads, stores, instructions = _sass(compiled.asm["cubin"])
        else:
            registers, spills, loads, stores, instructions = _amdgcn(compiled.asm["amdgcn"])
        reports.append(
            Report(
                case.name,
                kernel.__name__,
                target,
                options["num_warps"],
                registers,
                spills,
                shared,
                dict(loads),
                dict(stores),
                instructions,
                case.wide,
            )
        )
    return reports


def compile_all(targets: list[str], name: str, workers: int) -> list[Report]:
    """Compile the cases whose name contains `name` for every target; triton caches what was compiled before."""
    numbers = [number for number, case in enumerate(cases()) if name in case.name]
    jobs = [(number, target) for number in numbers for target in targets]
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as executor:
        return [report for reports in executor.map(compile_case, *zip(*jobs, strict=True)) for report in reports]


# --- checks ----------------------------------------------------------------------------------------------------------


def faults(report: Report, budget: dict[str, int] | None) -> list[str]:
    """Return what is wrong with a kernel: spills, registers over budget, accesses narrower than the layout allows.

    budget: registers of each kernel; without one any number passes.
    """
    found = []
    if report.spills:
        found.append(f"{report.spills} spill operations")
    if budget is not None and report.registers > budget.get(report.kernel, 0):
        found.append(f"{report.registers} registers, budget {budget.get(report.kernel, 0)}")
    # A wave of 64 lanes shares out a tile more thinly, so that the rule holds for warps of 32.
    if report.wide and TARGETS[report.target].warp_size == 32:
        accesses = Counter(report.loads) + Counter(report.stores)
        narrow = [width for width in accesses if int(width) < 32]
        moved = {width: int(width) * count for width, count in accesses.items()}
        if narrow:
            found.append(f"accesses of {' and '.join(narrow)} bits, {8 * report.wide} are possible")
        elif 2 * moved.get(str(8 * report.wide), 0) < sum(moved.values()):
            found.append(f"less than half of the bytes move in {8 * report.wide} bits: {dict(accesses)}")
    return found


def table(reports: list[Report]) -> str:
    """Return the reports as a Markdown table with a line for every use of a kernel.

    Values that differ are listed in the order of the targets or, where only one differs, in parentheses with its name.
    An access is count · bits.
    """
    targets = " / ".join(dict.fromkeys(report.target for report in reports))
    columns: dict[str, Callable[[Report], str]] = {
        "kernel": lambda report: report.kernel.removesuffix("_kernel"),
        "use": lambda report: report.case,
        "warps": lambda report: str(report.warps),
        f"registers ({targets})": lambda report: str(report.registers),
        "spills": lambda report: str(report.spills),
        "shared memory, B": lambda report: str(report.shared),
        "loads": lambda report: _accesses(report.loads),
        "stores": lambda report: _accesses(report.stores),
        "instructions": lambda report: str(report.instructions),
    }
    uses: dict[tuple[str, str], list[Report]] = {}
    for report in reports:
        uses.setdefault((report.kernel, report.case), []).append(report)
    lines = [
        list(columns),
        ["---"] * len(columns),
        *(
            [_cell({report.target: cell(report) for report in use}) for cell in columns.values()]
            for use in uses.values()
        ),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(values: dict[str, str]) -> str:
    first = next(iter(values.values()))
    others = [f"{target} {value}" for target, value in values.items() if value != first]
    if len(others) > 1:
        return " / ".join(values.values())
    return f"{first} ({others[0]})" if others else first


def _accesses(counts: dict[str, int]) -> str:
    widest_first = sorted(counts.items(), key=lambda entry: -int(entry[0]))
    return " + ".join(f"{count}·{width}" for width, count in widest_first) or "0"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m fastdm.kernels.compile_check", description=__doc__)
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--cases", default="", help="only the uses whose name contains this")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--budget", type=Path, help="JSON of registers per kernel; without it any number passes")
    parser.add_argument("--json", type=Path, help="where to write the reports")
    options = parser.parse_args(arguments)
    if launch.INTERPRETED:
        parser.error("TRITON_INTERPRET=1 replaces the compiler; unset it")

    reports = compile_all(options.targets, options.cases, options.workers)
    print(table(reports))
    if options.json:
        options.json.write_text(json.dumps([asdict(report) for report in reports]), encoding="utf-8")
    budget = json.loads(options.budget.read_text(encoding="utf-8")) if options.budget else None
    bad = [f"{r.kernel}, {r.case}, {r.target}: {'; '.join(f)}" for r in reports if (f := faults(r, budget))]
    print(*bad, sep="\n", file=sys.stderr)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
