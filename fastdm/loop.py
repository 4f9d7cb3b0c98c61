"""The condensation loop: the paper's Algorithm 1."""

import dataclasses
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from fastdm.augmentation import augment
from fastdm.data.pool import Dataset
from fastdm.data.sources import open_dataset
from fastdm.errors import FastDMError
from fastdm.kernels import draw, use_backend
from fastdm.networks import build_network
from fastdm.plan import Plan, make_plan
from fastdm.run import Run
from fastdm.settings import Settings
from fastdm.step import Step
from fastdm.synthetic import SyntheticSet

INIT_STEP = 2**32 - 1
"""The step number under which the initial images are drawn: no iteration has it."""


def condense(
    data: Any,
    ipc: int = 10,
    *,
    settings: Settings | None = None,
    data_path: str | Path = "data",
    device: str | torch.device | None = None,
    backend: str = "auto",
    chunk_memory: int | None = None,
    compile: bool = False,
    save_path: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    save_every: int = 1000,
    picture_every: int = 1000,
    callback: Callable[[int, float, Tensor], None] | None = None,
    progress: bool = False,
    **options: Any,
) -> SyntheticSet:
    """Condense a data set into `ipc` learnt images per class by distribution matching (Zhao & Bilen, WACV 2023).

    data: anything that `open_dataset` takes: a name (looked up under `data_path`), a folder, a file, arrays, a Dataset.
    options: any field of `Settings` by name (``iterations=20_000, batch_real=256, lr_img=1.0, init="real",
    strategy=…, network="ConvNet", seed=0, precision=…``), in place of the one in `settings`.
    device: "cpu", "cuda", …; default: the GPU if there is one.
    backend: of the ops: "auto", "triton" or "reference"; a choice that cannot be had is an error.
    chunk_memory: bytes that one chunk of classes may take; default: what is free. It changes the result by rounding
    only.
    compile: let torch.compile fuse the layers of the networks, which takes a compiler and a few seconds to half a
    minute at the start; it pays in long runs with networks other than the default, whose layers are fused already. It
    changes the result by rounding only.
    save_path: run folder for settings.json, log.jsonl, pictures (every `picture_every` iterations), checkpoints (every
    `save_every`) and the final set; nothing is written without it. resume: go on from its checkpoint, if it has one;
    the result is that of an uninterrupted run. overwrite: start anew where the folder holds a run.
    callback: called as (iteration, loss / classes, images) after every iteration; the images are the live tensor,
    float32 [classes * ipc, C, H, W], on the device.
    progress: show a bar on a terminal, JSON lines elsewhere.

    Returns the learnt set. Raises FastDMError, before the first iteration, for whatever cannot be used.
    """
    settings = _settings(settings or Settings(), {"ipc": ipc, **options})
    dataset = open_dataset(data, data_path=data_path)
    device = default_device(device)
    settings = settings.resolve(dataset, device)
    _check_classes(dataset, settings)

    with chosen_backend(backend), arithmetic(settings, device) as dtype:
        step, plan = build_step(dataset, settings, device, dtype, chunk_memory)
        result = SyntheticSet(
            images=step.images,
            class_names=dataset.class_names,
            mean=dataset.mean,
            std=dataset.std,
            dataset=dataset.name,
            settings=dataclasses.asdict(settings),
        )
        with (
            closing(step),
            Run(
                None if save_path is None else Path(save_path),
                step,
                result,
                settings.iterations,
                identity={**settings.identity(), **fingerprint(dataset)},
                resume=resume,
                overwrite=overwrite,
                save_every=save_every,
                picture_every=picture_every,
                progress=progress,
            ) as run,
        ):
            run.say(str(plan))
            for note in prepare(step, device, compile):
                run.say(note)
            run.start_clock()
            for iteration in range(run.first_iteration, settings.iterations):
                loss = step(iteration)
                run.after(iteration, loss)
                if callback is not None:
                    callback(iteration, loss.item(), step.images)
        return run.finish()


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
            yield f"compiled the network's layers in {step.compile():.1f} s"
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
    index = draw(key, dataset.train.class_offsets, settings.ipc).flatten()
    return augment(dataset.train.images, [], index=index, mean=dataset.mean, std=dataset.std).to(device)


def fingerprint(dataset: Dataset) -> dict[str, Any]:
    """What tells one data set from another when a run is resumed."""
    sizes = dataset.train.class_sizes
    return {
        "dataset": dataset.name,
        "image_shape": list(dataset.image_shape),
        "class_sizes_crc32": zlib.crc32(sizes.numpy().tobytes()),
    }


def _settings(settings: Settings, options: dict[str, Any]) -> Settings:
    known = [field.name for field in dataclasses.fields(Settings)]
    for name in options:
        if name not in known:
            raise FastDMError(f"unknown setting {name!r}; known are {', '.join(known)}")
    return dataclasses.replace(settings, **options)


def default_device(device: str | torch.device | None) -> torch.device:
    """The device asked for, by default the GPU if there is one; FastDMError for one that is not there."""
    try:
        chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
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


def _check_classes(dataset: Dataset, settings: Settings) -> None:
    """Every class must have the images that the settings ask of it."""
    for name, size in zip(dataset.class_names, dataset.train.class_sizes.tolist(), strict=True):
        if size == 0:
            raise FastDMError(f"class {name!r} of {dataset.name} has no images; leave it out or add some")
        if settings.init == "real" and size < settings.ipc:
            raise FastDMError(
                f"ipc is {settings.ipc}, but class {name!r} of {dataset.name} has {size} images to start from; "
                f"use an ipc of at most {size}, or init='noise'"
            )
        if settings.small_classes == "error" and size < settings.batch_real:
            raise FastDMError(
                f"batch_real is {settings.batch_real}, but class {name!r} of {dataset.name} has {size} images; "
                f"use a batch_real of at most {size}, or small_classes='use_all'"
            )


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
