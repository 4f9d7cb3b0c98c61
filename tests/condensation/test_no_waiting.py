"""What a GPU is asked for within an iteration, without one: nothing that makes the host wait.

The device "meta" stands in for it. It has no values, so that whatever reads one (`item`, `nonzero`, an index by
booleans) fails there, and what comes from or goes to the CPU is seen by its device. The same operations would break the
recording of a CUDA graph.
"""

from contextlib import closing
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastdm.condensation.build import build_step
from fastdm.condensation.settings import Settings
from fastdm.data.pool import Dataset
from fastdm.networks.architectures import build_network
from fastdm.networks.trained import NetworkPool, flatten_parameters
from tests.oracles import random_dataset

CPU, DEVICE = torch.device("cpu"), torch.device("meta")


class NoTransfer(TorchDispatchMode):
    """Refuses operations that have tensors on two devices."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += 1
        result = func(*args, **(kwargs or {}))
        devices = {value.device for value in tree_leaves((args, kwargs, result)) if isinstance(value, Tensor)}
        assert len(devices) <= 1, f"{func} has tensors on {devices}"
        return result


class NoNumbers(TorchFunctionMode):
    """Refuses to make tensors of Python numbers, which would have to be copied to the device."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func not in (torch.tensor, torch.as_tensor) or isinstance(args[0], Tensor), f"{func} of {args[0]}"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="defaults"),
        pytest.param({"strategy": "rotate_scale_flip_color_crop_cutout", "aug_mode": "M"}, id="several tables"),
        pytest.param({"strategy": "none", "network": "ConvNetW32"}, id="no augmentation"),
        pytest.param({"batch_real": 33}, id="ragged"),
        pytest.param({"partition": 2, "strategy": "color_crop_cutout", "aug_mode": "M"}, id="partition"),
        pytest.param({"objective": "mmd", "batch_real": 33}, id="mmd"),
        pytest.param({"objective": "cov"}, id="covariances"),
        pytest.param({"networks": "trained"}, id="trained networks"),
        pytest.param({"networks": "trained", "ce_weight": 2.5, "partition": 2}, id="cross-entropy"),
        pytest.param({"networks": "trained", "ce_weight": 2.5, "ce_ahead": 0}, id="cross-entropy in the same network"),
        *(pytest.param({"network": name}, id=name) for name in ("ConvNetBN", "ResNet18", "AlexNet", "MLP")),
    ],
)
def test_an_iteration_never_waits_for_the_device(options: dict[str, Any]) -> None:
    dataset = random_dataset([40, 30, 35], (3, 32, 32))
    settings = Settings(**{"ipc": 2, "batch_real": 16, **options}).resolve(dataset, CPU)
    pool = random_pool(dataset) if settings.networks == "trained" else None
    step, _ = build_step(dataset, settings, DEVICE, torch.bfloat16, chunk_memory=1 << 40, pool=pool)
    with closing(step):
        step(0)  # Makes what is kept.
        with NoNumbers(), NoTransfer() as mode:
            step(1)
    assert mode.calls > 30


def random_pool(dataset: Dataset) -> NetworkPool:
    network = build_network("ConvNet", channels=3, num_classes=dataset.num_classes, image_size=32, affine=False)
    weights = flatten_parameters(network).repeat(2, 3, 1)
    return NetworkPool(weights, "ConvNet", dataset.image_shape, dataset.num_classes, dataset.name)


def test_the_stand_in_notices() -> None:
    values = torch.zeros(3, device=DEVICE)
    with NoNumbers(), NoTransfer():
        for wait in (
            lambda: values[0].item(),
            lambda: values[values > 0],
            lambda: values.nonzero(),
            lambda: torch.tensor([1.0, 2.0, 3.0], device=DEVICE),
            lambda: values[torch.tensor([0, 1])],
            lambda: values.copy_(torch.zeros(3)),
        ):
            with pytest.raises((AssertionError, RuntimeError)):
                wait()
