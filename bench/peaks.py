"""The two peaks of a device, measured: copying, and multiplying matrices. Every percentage elsewhere is of these.

python -m bench.peaks [--device cuda] [--smoke]
"""

import argparse
from typing import Any

import torch

from bench import results
from bench.timer import device_times

COPY_BYTES = {"cuda": 1 << 30, "cpu": 256 << 20}
MATRIX = {"cuda": 8192, "cpu": 2048}


def measure(device: torch.device, smoke: bool) -> list[dict[str, Any]]:
    """Rows "copy" (bytes read and written) and "matmul bf16", "matmul tf32" or "fp32", with random data.

    The peaks are those of the fastest run.
    """
    rows: list[dict[str, Any]] = []
    size = 1 << 22 if smoke else COPY_BYTES[device.type]
    source = torch.randint(256, (size,), dtype=torch.uint8, device=device)
    times = device_times({"copy": torch.Tensor.clone}, [(source,)] * 2, device)["copy"]
    spread = results.spread(times)
    rows.append(
        {"name": "copy", "bytes": 2 * size, "seconds": {"copy": spread}, "gb_per_s": 2 * size / min(times) / 1e9}
    )
    del source

    n = 256 if smoke else MATRIX[device.type]
    single = "tf32" if device.type == "cuda" else "fp32"
    for name, dtype in (("bf16", torch.bfloat16), (single, torch.float32)):
        inputs = [(torch.randn(n, n, device=device, dtype=dtype), torch.randn(n, n, device=device, dtype=dtype))]
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = name == "tf32"
        try:
            times = device_times({name: torch.matmul}, inputs, device)[name]
        finally:
            torch.backends.cuda.matmul.allow_tf32 = before
        spread = results.spread(times)
        rows.append(
            {
                "name": f"matmul {name}",
                "flops": 2 * n**3,
                "seconds": {"matmul": spread},
                "tflop_per_s": 2 * n**3 / min(times) / 1e12,
            }
        )
    return rows


def measured(device: torch.device) -> dict[str, float]:
    """The peaks that were saved for this machine and device, by row name: bytes or FLOPs per second; may be empty."""
    about = results.machine(str(device))
    for result in results.load("peaks"):
        if (result["machine"]["cpu"], result["machine"]["device"]) == (about["cpu"], about["device"]):
            return {
                row["name"]: row["gb_per_s"] * 1e9 if "gb_per_s" in row else row["tflop_per_s"] * 1e12
                for row in result["rows"]
            }
    return {}


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options that all benchmarks of devices share."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    made.add_argument("--smoke", action="store_true", help="tiny shapes: whether it runs, not how fast")
    return made


def device_of(arguments: argparse.Namespace) -> torch.device:
    """With its number: a tensor's device is never plain "cuda"."""
    device = torch.device(arguments.device)
    return torch.device("cuda", 0) if device.type == "cuda" and device.index is None else device


def main() -> None:
    arguments = parser(__doc__).parse_args()
    rows = measure(device_of(arguments), arguments.smoke)
    print(results.save("peaks", rows, {"smoke": arguments.smoke}, arguments.device))


if __name__ == "__main__":
    main()
