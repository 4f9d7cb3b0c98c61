"""One step on a fake card: it captures, is one launch, never waits, and stays within its plan."""

import gc
import math
import weakref
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from fastdm.condensation.build import build_step
from fastdm.condensation.plan import LIBRARY_BYTES, MemoryPlan
from fastdm.condensation.recipes import recipe_settings
from fastdm.condensation.settings import Settings
from fastdm.condensation.step import Step
from fastdm.data.pool import Dataset, Pool
from fastdm.networks.architectures import build_network
from fastdm.networks.trained import NetworkPool
from fastdm.system.device import precision_context
from tests.fakegpu.gpu import WORK, Line, recorded

MIB = 1 << 20
SLACK = 32 * MIB
"""Of the peak, for tables, offsets and the allocator's rounding."""


def dataset(classes: int, each: int, *shape: int, ragged: bool = False, device: str = "cpu") -> Dataset:
    """Its pixels are never written: a set of many GiB takes no memory."""
    sizes = torch.tensor([each - (label % 5 if ragged else 0) for label in range(classes)])
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)])
    images = torch.empty(int(offsets[-1]), *shape, dtype=torch.uint8, device=device)
    names, channels = tuple(map(str, range(classes))), shape[0]
    return Dataset("fake", Pool(images, offsets), None, names, (0.5,) * channels, (0.25,) * channels)


@dataclass(frozen=True)
class Case:
    """A data set's classes, images of each, and shape, with settings besides those of a recipe."""

    name: str
    sizes: tuple[int, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    ragged: bool = False
    chunk_memory: int | None = None
    recipe: str = "dm"

    def dataset(self) -> Dataset:
        return dataset(*self.sizes, ragged=self.ragged)

    def resolved(self, data: Dataset, device: torch.device) -> Settings:
        defaults = {"ipc": 1, "batch_real": 16 if self.is_small else 256, "init": "noise"}
        return replace(recipe_settings(self.recipe, data, 1), **(defaults | self.settings)).resolve(data, device)

    @property
    def is_small(self) -> bool:
        """Whether a class has so few images that a batch must be smaller than the paper's."""
        return self.sizes[1] <= 300

    @property
    def with_more_classes(self) -> "Case":
        return replace(self, sizes=(2 * self.sizes[0], *self.sizes[1:]))


def trained(settings: Settings, data: Dataset) -> NetworkPool | None:
    """A pool whose weights were never written, if the settings ask for one."""
    if settings.networks == "random":
        return None
    assert settings.network is not None
    channels, *size = data.image_shape
    network = build_network(
        settings.network, channels=channels, num_classes=data.num_classes, image_size=(size[0], size[1]), affine=False
    )
    parameters = sum(math.prod(parameter.shape) for parameter in network.parameters())
    weights = torch.empty(2, 3, parameters)
    return NetworkPool(weights, settings.network, data.image_shape, data.num_classes, data.name)


SMALL = (10, 40, 3, 32, 32)
KINDS = [
    Case("mode S", SMALL),
    Case("mode M", SMALL, {"aug_mode": "M"}),
    Case("tf32", SMALL, {"precision": "tf32"}),
    Case("fp32, deterministic", SMALL, {"precision": "fp32", "deterministic": True}),
    Case("initial images real", SMALL, {"init": "real"}),
    Case("classes of several sizes", SMALL, {"batch_real": 38}, ragged=True),
    Case("grey", (10, 40, 1, 28, 28)),
    Case("no augmentation", SMALL, {"strategy": "none"}),
    *(Case(f"objective {name}", SMALL, {"objective": name}) for name in ("mmd", "cov")),
    Case("partition 2", SMALL, {"partition": 2}),
    Case("trained networks", SMALL, {"networks": "trained"}),
    Case("recipe trained", SMALL, recipe="trained"),
    Case("recipe trained, ConvNetBN", SMALL, {"network": "ConvNetBN"}, recipe="trained"),
    Case("recipe trained, chunks", (100, 300, 3, 32, 32), {"batch_real": 128}, chunk_memory=2 << 30, recipe="trained"),
    Case("chunks", (100, 300, 3, 32, 32), {"batch_real": 256}, chunk_memory=2 << 30),
    Case("a class in parts", (2, 300, 3, 256, 256), {"batch_real": 256, "network": "ConvNetD6"}),
    *(Case(name, SMALL, {"network": name}) for name in ("MLP", "AlexNet", "VGG11", "ResNet18", "ConvNetBN")),
]
"""Every path of the step, small."""

SETS = [
    Case("CIFAR-10, ipc 10", (10, 5000, 3, 32, 32), {"ipc": 10}),
    Case("CIFAR-100, ipc 10, ConvNetBN", (100, 500, 3, 32, 32), {"ipc": 10, "network": "ConvNetBN", "batch_real": 64}),
    Case("Tiny ImageNet, ipc 10", (200, 500, 3, 64, 64), {"ipc": 10}),
    Case("Tiny ImageNet, ipc 1, ResNet18", (200, 500, 3, 64, 64), {"network": "ResNet18"}),
    Case("ImageNet-1K at 64, ipc 10", (1000, 1281, 3, 64, 64), {"ipc": 10}),
    Case("ImageNette at 128, ipc 10, ConvNetD5", (10, 1300, 3, 128, 128), {"ipc": 10, "network": "ConvNetD5"}),
    Case("ImageNette at 128, ipc 1, ConvNetBN", (10, 1300, 3, 128, 128), {"network": "ConvNetBN", "batch_real": 32}),
    Case("ImageNette at 224, ipc 10, ConvNetD6", (10, 1300, 3, 224, 224), {"ipc": 10, "network": "ConvNetD6"}),
    Case("ImageNette at 224, ipc 1, ResNet18", (10, 1300, 3, 224, 224), {"network": "ResNet18"}),
]
"""The shapes of real data sets, which small cards stream."""


@contextmanager
def _built(case: Case, device: torch.device) -> Iterator[tuple[Step, MemoryPlan]]:
    data = case.dataset()
    settings = case.resolved(data, device)
    with precision_context(settings.precision, device, deterministic=settings.deterministic) as dtype:
        step, plan = build_step(data, settings, device, dtype, case.chunk_memory, trained(settings, data))
        with closing(step):
            yield step, plan


def check(case: Case, device: torch.device) -> dict[str, Any]:
    """What the case takes, and under `wrong` what does not hold."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    with _built(case, device) as (step, plan):
        row = _run(step, plan)
    peak = torch.cuda.max_memory_allocated(device) - before
    planned = plan.images_bytes + plan.real_bytes + plan.synthetic_bytes
    planned += plan.pool_bytes if plan.residence == "copied" else 0
    if peak > planned + plan.images_bytes + SLACK:  # copies of images and momentum during the recording
        row["wrong"].append(f"takes {peak // MIB} MiB; planned are {planned // MIB}")
    reserved = torch.cuda.max_memory_reserved(device)
    if reserved + LIBRARY_BYTES > torch.cuda.get_device_properties(device).total_memory:
        row["wrong"].append(f"keeps {reserved // MIB} MiB, which leaves libraries less than {LIBRARY_BYTES // MIB}")
    gone = weakref.ref(step)
    del step
    if gone() is not None:
        row["wrong"].append("the step and its memory stay until garbage is collected")
    if case.is_small and plan.chunk_classes == case.sizes[0]:
        with _built(case.with_more_classes, device) as (step, _):
            step(0)  # Algorithms are tried once for every shape.
            with recorded() as iteration:
                step(1)
        if (more := _count(iteration, *WORK)) != row["ops"]:
            row["wrong"].append(f"{row['ops']} launches become {more} with twice the classes")
    return {
        "residence": plan.residence,
        "chunk_classes": plan.chunk_classes,
        "planned_mib": planned // MIB,
        "peak_mib": peak // MIB,
        "reserved_mib": reserved // MIB,
        **row,
    }


def _run(step: Step, plan: MemoryPlan) -> dict[str, Any]:
    """Record, replay and run op by op: nodes, kernels, launches and waits of an iteration."""
    wrong: list[str] = []
    with recorded() as recording:
        reason = step.capture()
    if (plan.residence != "streamed") == bool(reason):
        wrong.append(f"captured {not reason}: {reason}")
    nodes = next((int(line.what) for line in recording if line.kind == "RECORDED"), 0)
    step(0)
    with recorded() as iteration:
        step(1)
    launches = _count(iteration, *WORK)
    if not reason and (_count(iteration, "GRAPH") != 1 or launches > 4):
        wrong.append(f"an iteration is {launches} launches, {_count(iteration, 'GRAPH')} of them graphs")
    step.release()
    with recorded() as op_by_op:
        step(2)
    ops = _count(op_by_op, *WORK)
    if not reason and not ops - 1 <= nodes <= ops:  # the key is written outside the graph
        wrong.append(f"the graph has {nodes} nodes, op by op there are {ops}")
    # A thread that reads ahead may wait, the one that starts kernels may not.
    waits = [line for line in (*iteration, *op_by_op) if line.kind == "WAIT" and line.thread == 0]
    wrong += [f"the host waits: {line.what}" for line in waits[:1]]
    wrong += [f"illegal: {line.what}" for line in (*recording, *iteration, *op_by_op) if _is_illegal(line)][:1]
    return {"nodes": nodes, "ops": ops, "launches": launches, "waits": len(waits), "wrong": wrong}


def _count(lines: list[Line], *kinds: str) -> int:
    """Lines of these kinds; work that a thread reading ahead starts counts too."""
    return sum(line.kind in kinds for line in lines)


def _is_illegal(line: Line) -> bool:
    return line.kind == "ILLEGAL" or line.what.startswith(("ILLEGAL", "LARGE"))
