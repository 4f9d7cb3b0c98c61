"""The two peaks of a device, measured: copying, and multiplying matrices. Every percentage elsewhere is of these.

On a CPU they are measured with all threads and with one.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch

from bench.harness import arguments, records
from bench.harness.records import Row, Suite, spread
from bench.harness.timer import device_times, threads
from fastdm.system.device import Precision, precision_context

COPY_MIB = {"cuda": (128, 512, 1024), "cpu": (128, 256, 512)}  # each past the caches
MATRIX = {"cuda": (4096, 8192, 12288), "cpu": (1024, 2048, 3072)}

Call = Callable[[], object]

SUITE = Suite(
    "peaks",
    "Peaks",
    "Measured, and what every percentage on this page is of: the fastest run of the best size, on memory that was "
    "touched before. Bytes of a copy are read and written.",
    (),
    "what | name; threads; best size | size; GB/s | gb_per_s | ,.3g; TFLOP/s | tflop_per_s | ,.3g",
)


def fastest(what: str, key: str, unit: float, sizes: dict[str, tuple[float, Call]], device: torch.device) -> Row:
    """The size with the highest rate, that rate per second in a unit, and the spread of its seconds.

    sizes: what a call works through, and the call.
    """
    times = {size: device_times({"": call}, [()], device)[""] for size, (_, call) in sizes.items()}
    rates = {size: sizes[size][0] / min(found) for size, found in times.items()}
    size = max(rates, key=rates.__getitem__)
    return {"size": size, "seconds": {what: spread(times[size])}, key: rates[size] / unit}


def copy(device: torch.device, smoke: bool) -> Row:
    sizes: dict[str, tuple[float, Call]] = {}
    for mib in (4,) if smoke else COPY_MIB[device.type]:
        source, out = (torch.randint(256, (mib << 20,), dtype=torch.uint8, device=device) for _ in range(2))
        sizes[f"{mib} MiB"] = 2 * (mib << 20), partial(out.copy_, source)
    return fastest("copy", "gb_per_s", 1e9, sizes, device)


def matmul(device: torch.device, smoke: bool, precision: Precision) -> Row:
    sizes: dict[str, tuple[float, Call]] = {}
    with precision_context(precision, device) as dtype:
        for n in (256,) if smoke else MATRIX[device.type]:
            a, b, out = (torch.randn(n, n, device=device).to(dtype) for _ in range(3))
            sizes[f"{n}²"] = 2 * n**3, partial(torch.matmul, a, b, out=out)
        return fastest("matmul", "tflop_per_s", 1e12, sizes, device)


def measure(device: torch.device, smoke: bool) -> Iterator[Row]:
    """Rows "copy" and "matmul …" of every precision and, on a CPU, the same with one thread."""
    everything = torch.get_num_threads()
    for count in dict.fromkeys([everything, 1]) if device.type == "cpu" else [0]:
        of = {"threads": count} if count else {}
        suffix = ", 1 thread" if count == 1 < everything else ""
        with threads(count or everything):
            yield {"name": f"copy{suffix}", **of, **copy(device, smoke)}
            precisions: list[Precision] = ["bf16", "tf32" if device.type == "cuda" else "fp32"]
            for precision in precisions:
                yield {"name": f"matmul {precision}{suffix}", **of, **matmul(device, smoke, precision)}


if __name__ == "__main__":
    parser = arguments.parser(__doc__, "--device")
    records.record(SUITE, parser.parse_args(), lambda options: measure(options.device, options.smoke))
