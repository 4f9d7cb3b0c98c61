"""What a condensation runs on and with: device, backend of the ops, arithmetic, initial images, plan and step."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor

from fastdm.augmentation import augment
from fastdm.data.pool import Dataset
from fastdm.errors import FastDMError
from fastdm.kernels import draw, use_backend
from fastdm.networks import build_network
from fastdm.plan import Plan, make_plan
from fastdm.settings import Settings
from fastdm.step import Step

INIT_STEP = 2**32 - 1
"""The step number under which the initial images are drawn: no iteration has it."""


def default_device(device: str | torch.device | None) -> torch.device:
    """The device asked for, by default the GPU if there is one; FastDMError for one that is not there."""
    try:
        chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if chosen.type not in ("cpu", "cuda"):
            raise FastDMError(f"device {device!r} is neither a CPU nor a CUDA device")
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise FastDMError(f"device {device!r} cannot be used here ({str(error).splitlines()[0]})") from error
    return chosen


@contextmanager
def chosen_backend(backend: str) -> Iterator[None]:
    """`use_backend`, whose refusal is a user's mistake here."""
    try:
        chosen = use_backend(cast(Any, backend))
        chosen.__enter__()
    except (RuntimeError, ValueError) as error:
        raise FastDMError(str(error)) from error
    try:
        yield
    finally:
        chosen.__exit__(None, None, None)


@contextmanager
def arithmetic(settings: Settings, device: torch.device) -> Iterator[torch.dtype]:
    """Set the device to the precision of the networks while the block runs; gives their dtype."""
    tf32 = settings.precision == "tf32"
    if tf32 and device.type != "cuda":
        raise FastDMError("precision 'tf32' is a GPU's; on this device use 'fp32' or 'bf16'")
    matmul = torch.backends.cuda.matmul
    before, matmul.allow_tf32 = matmul.allow_tf32, tf32
    try:
        repeatable = settings.deterministic
        flags = torch.backends.cudnn.flags(
            enabled=True, benchmark=not repeatable, deterministic=repeatable, allow_tf32=tf32
        )
        with flags:
            yield torch.bfloat16 if settings.precision == "bf16" else torch.float32
    finally:
        matmul.allow_tf32 = before


def build_step(
    dataset: Dataset, settings: Settings, device: torch.device, dtype: torch.dtype, chunk_memory: int | None = None
) -> tuple[Step, Plan]:
    """The step for resolved settings, at its initial images, and the plan that it follows."""
    assert settings.network is not None
    network = build_network(
        settings.network,
        channels=dataset.image_shape[0],
        num_classes=dataset.num_classes,
        image_size=dataset.image_shape[1:],
        frozen=True,
    ).to(device, dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    plan = make_plan(
        network,
        image_shape=dataset.image_shape,
        num_classes=dataset.num_classes,
        ipc=settings.ipc,
        batch_real=settings.batch_real,
        pool_bytes=dataset.train.images.numel(),
        dtype=dtype,
        device=device,
        chunk_memory=chunk_memory,
    )
    return Step(dataset, initial_images(dataset, settings, device), network, settings, plan, dtype), plan


def prepare(step: Step, device: torch.device, compile: bool) -> Iterator[str]:
    """Compile the step's network if asked to, and record the iteration as a CUDA graph where that can be had; says how
    it went. Raises FastDMError for networks that cannot be compiled."""
    if compile:
        try:
            seconds = step.compile()
            yield (
                f"compiled the network's layers in {seconds:.1f} s"
                if seconds
                else "nothing to compile: the network's layers are single ops already"
            )
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0]
            raise FastDMError(f"the networks cannot be compiled here ({reason}); go without compile") from error
    if device.type == "cuda":
        try:
            step.capture()
        except RuntimeError as error:
            yield f"running without a CUDA graph: {error}"


def initial_images(dataset: Dataset, settings: Settings, device: torch.device) -> Tensor:
    """Random real images of every class, or N(0, 1) noise: float32 [classes * ipc, C, H, W], normalised, on `device`.

    Both come from the seed alone, whatever the device.
    """
    if settings.init == "noise":
        generator = torch.Generator().manual_seed(settings.seed)
        shape = (dataset.num_classes * settings.ipc, *dataset.image_shape)
        return torch.randn(shape, generator=generator).to(device)
    key = torch.tensor([settings.seed, INIT_STEP])
    images = dataset.train.read(draw(key, dataset.train.class_offsets, settings.ipc).flatten())
    return augment(images, [], mean=dataset.mean, std=dataset.std).to(device)
