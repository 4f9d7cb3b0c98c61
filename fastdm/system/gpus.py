"""GPUs by name, as their makers describe them: for models of what is not here."""

import re
from dataclasses import dataclass

from fastdm.errors import unknown
from fastdm.system.device import Precision


@dataclass(frozen=True)
class Gpu:
    """memory: bytes that are free on an idle card. flops: by precision, the peak per second of dense matrix products
    with float32 sums. bandwidth: bytes per second to and from its memory."""

    name: str
    memory: int
    flops: dict[Precision, float]
    bandwidth: float


def _gpu(name: str, gib: float, bf16: float, tf32: float, fp32: float, bandwidth: float) -> Gpu:
    """gib: memory as the driver shows it; half a GiB of it goes to the CUDA context. TFLOP/s, TB/s."""
    flops: dict[Precision, float] = {"bf16": bf16 * 1e12, "tf32": tf32 * 1e12, "fp32": fp32 * 1e12}
    return Gpu(name, int((gib - 0.5) * 2**30), flops, bandwidth * 1e12)


GPUS = {
    gpu.name: gpu
    for gpu in (
        _gpu("RTX3090", 23.7, 71, 35.6, 35.6, 0.94),
        _gpu("RTX4090", 23.6, 165, 82.6, 82.6, 1.01),
        _gpu("L40S", 44.5, 362, 183, 91.6, 0.86),
        _gpu("A100-40", 39.4, 312, 156, 19.5, 1.56),
        _gpu("A100-80", 79.2, 312, 156, 19.5, 2.04),
        _gpu("H100", 79.2, 989, 494, 67, 3.35),
        _gpu("H200", 139.8, 989, 494, 67, 4.8),
    )
}
"""From NVIDIA's data sheets: A100 and H100 as SXM modules, the figures without sparsity."""


def find_gpu(name: str) -> Gpu:
    """The GPU of that name, whatever its case, spaces and dashes. Raises FastDMError for one that is not known.

    >>> find_gpu("RTX 4090").name
    'RTX4090'
    """
    spelled = {_plain(each): gpu for each, gpu in GPUS.items()}
    if _plain(name) not in spelled:
        raise unknown("device", name, ["cpu", "cuda", *GPUS])
    return spelled[_plain(name)]


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
