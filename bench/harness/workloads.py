"""The shapes that are measured: random data sets of the size of known ones, and what an iteration on them must cost."""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench.harness import records
from bench.harness.records import Row
from fastdm import Settings
from fastdm.condensation.build import build_networks
from fastdm.condensation.work import count_work
from fastdm.data import Dataset, Pool
from fastdm.data.unread import unread_dataset
from fastdm.system.device import resident_memory

CPU = torch.device("cpu")


def restart_peak(device: torch.device) -> int:
    """Let `peak_memory` begin anew; returns the bytes in use, of tensors on a GPU and of the process on a CPU."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    Path("/proc/self/clear_refs").write_text("5")
    return resident_memory()


@dataclasses.dataclass(frozen=True)
class Workload:
    """class_size: images of each class in the pool; batch_real: real images per class and iteration.

    options: other settings.
    """

    name: str
    classes: int
    size: int
    ipc: int
    class_size: int
    batch_real: int = 256
    channels: int = 3
    network: str | None = None
    options: dict[str, Any] = dataclasses.field(default_factory=dict)

    def settings(self, **options: Any) -> Settings:
        return Settings(
            ipc=self.ipc, batch_real=self.batch_real, network=self.network, init="noise", **self.options, **options
        )

    def dataset(self, device: torch.device) -> Dataset:
        """Random patchwork with a tint of its class, so that class means differ; the pool is on the device."""
        random = partial(
            torch.randint, dtype=torch.uint8, device=device, generator=torch.Generator(device).manual_seed(0)
        )
        coarse = random(180, (self.classes, self.class_size, self.channels, 4, 4))
        coarse += random(76, (self.classes, 1, self.channels, 1, 1))
        patch = -(-self.size // 4)
        images = coarse.flatten(0, 1).repeat_interleave(patch, 2).repeat_interleave(patch, 3)
        pool = Pool(
            images[..., : self.size, : self.size].contiguous(), torch.arange(self.classes + 1) * self.class_size
        )
        names = tuple(f"class {c}" for c in range(self.classes))
        return Dataset(self.name, pool, None, names, (0.5,) * self.channels, (0.25,) * self.channels)

    def work(self, precision: str, seconds: float, about: dict[str, Any]) -> Row:
        """What an iteration computes, and what its layers read and write, each once, as the package counts them; its
        share of the peak of the machine `about`."""
        dataset = unread_dataset(self.classes, self.classes * self.class_size, (self.channels, self.size, self.size))
        settings = self.settings().resolve(dataset, CPU)
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        networks = build_networks(dataset, settings, torch.device("meta"), dtype, None)
        counted = count_work(networks, dataset.train, settings, dtype)
        flops = round(counted.flops)
        found: Row = {"flops": flops, "least_bytes": round(counted.moved), "tflop_per_s": flops / seconds / 1e12}
        if limit := records.peaks(about).get(f"matmul {precision}"):
            found["percent_of_matmul"] = 100 * flops / seconds / limit
            if flops / seconds > limit:
                found["note"] = "the FLOPs are those of plain convolutions: Winograd's form multiplies less often"
        return found

    def smoke(self) -> "Workload":
        """The same in a size that runs anywhere in a second."""
        network = self.network or "ConvNetW32"
        ipc = min(self.ipc, 2)
        return dataclasses.replace(self, classes=4, size=16, ipc=ipc, class_size=16, batch_real=8, network=network)


CIFAR10 = Workload("CIFAR-10 ipc 10", 10, 32, 10, 5000)
IMAGENET = Workload("ImageNet-1K 64² ipc 10", 1000, 64, 10, 260)
CHUNK = dataclasses.replace(IMAGENET, name="ImageNet-1K 64² ipc 10, 15 classes", classes=15)
"""As many classes of ImageNet-1K as one pass takes where a tensor must have fewer than 2^31 elements."""
CHUNKS = dataclasses.replace(CHUNK, name="ImageNet-1K 64² ipc 10, 31 classes", classes=31)
"""One class more than two passes take."""
_CIFAR10_SIZES = [dataclasses.replace(CIFAR10, name=f"CIFAR-10 ipc {ipc}", ipc=ipc) for ipc in (1, 10, 50)]
CPU_SIZES = [
    *_CIFAR10_SIZES,
    Workload("FashionMNIST ipc 10", 10, 28, 10, 6000, channels=1),
    # 256 real images would take the public loop ten minutes an iteration; as it is, it takes longest.
    Workload("Tiny ImageNet ipc 1", 200, 64, 1, 500, batch_real=32),
]
GPU_SIZES = [
    *_CIFAR10_SIZES,
    Workload("CIFAR-100 ipc 10", 100, 32, 10, 500),
    Workload("Tiny ImageNet ipc 10", 200, 64, 10, 500),
    dataclasses.replace(IMAGENET, name="ImageNet-1K 64² ipc 1", ipc=1),
    IMAGENET,
]
