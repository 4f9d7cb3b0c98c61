"""`condense`: from what the user asks for to the loop over iterations. One iteration is in step.py."""

import dataclasses
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastdm.condensation.build import build_step, op_by_op, prepare
from fastdm.condensation.plan import MemoryPlan
from fastdm.condensation.recipes import recipe_settings
from fastdm.condensation.settings import Settings
from fastdm.condensation.shards import Shard, shard
from fastdm.condensation.step import Step
from fastdm.data.pool import Dataset
from fastdm.data.sources import open_dataset
from fastdm.errors import FastDMError, unknown, whole_number
from fastdm.networks.own import Builder, layers_crc32, own_name
from fastdm.networks.trained import NetworkPool, opened_pool
from fastdm.runs.about import About
from fastdm.runs.options import Observer, RunOptions
from fastdm.runs.recording import peak_memory, recorded
from fastdm.runs.run import Run
from fastdm.runs.saving import State
from fastdm.synthetic.display import display_pixels, write_grid
from fastdm.synthetic.synthetic_set import SyntheticSet, check_compatible
from fastdm.system.device import chosen_backend, default_device, precision_context, undisturbed
from fastdm.system.machine import machine
from fastdm.system.memory import within_memory
from fastdm.system.ranks import Ranks, shared
from fastdm.system.streams import stderr_to

FINGERPRINT_IMAGES = 64
"""Images whose pixels identify a data set: few, since those of a packed file come from the disk."""

_SMALLER = "take a smaller chunk_memory, batch_real or ipc, or smaller images"


@within_memory(_SMALLER)
@undisturbed()
def condense(
    data: Any,
    ipc: int | None = None,
    *,
    recipe: str | None = None,
    settings: Settings | None = None,
    pool: NetworkPool | str | Path | None = None,
    data_path: str | Path = "data",
    image_size: int | tuple[int, int] | None = None,
    device: str | torch.device | None = None,
    backend: str = "auto",
    chunk_memory: int | None = None,
    compile: bool = False,
    save_path: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    save_every: int = 1000,
    save_minutes: float | None = None,
    picture_every: int = 1000,
    profile: range | None = None,
    callback: Callable[[int, float, Tensor], None] | None = None,
    progress: bool = False,
    verbose: bool = False,
    tensorboard: bool = False,
    **options: Any,
) -> SyntheticSet:
    """Condense a data set into `ipc` synthetic images per class by distribution matching (Zhao & Bilen, WACV 2023).

    data: anything that `open_dataset` takes: a name (looked up under `data_path`), a folder of images (brought to
    `image_size` if that is given), a file, arrays, a Dataset.
    ipc: images per class, by default that of `settings`, which is 10.
    recipe: "dm", the paper's settings (the default), or "trained": see `fastdm.condensation.recipes`. In place of
    `settings`.
    pool: trained networks, or their file, for networks="trained": see `fastdm.train_pool`.
    options: any field of `Settings` by name (`iterations=20_000, batch_real=256, lr_img=1.0, init="real",
    strategy=…, network="ConvNet", seed=0, precision=…`), in place of the one in `settings`. network may also be a
    function without arguments that builds a `torch.nn.Module` with a method `embed`, from images [N, C, H, W] to their
    features. If only its Conv2d, Linear, BatchNorm2d, GroupNorm and LayerNorm layers have weights, these are drawn anew
    in each iteration, from PyTorch's default distributions; else the function is called in each iteration, which takes
    longer and, on a GPU, rules out a CUDA graph. Dropout is refused. The set names the network by the function's name,
    with "(own)" where fastdm has another network of that name; give `evaluate` the function as well. A run is resumed
    with the same layers only.
    device: "cpu", "cuda", …; default: the GPU if there is one.
    backend: implementation of the ops: "auto", "triton" or "reference"; requesting an unavailable one is an error.
    chunk_memory: bytes that one chunk of classes may take; default: what is free. It changes the result by rounding
    only.
    compile: let torch.compile fuse the layers of the networks, which takes a compiler and a few seconds to half a
    minute at the start; it pays in long runs with networks other than the default, whose layers are fused already. It
    changes the result by rounding only.
    save_path: run folder for settings.json, log.jsonl, pictures (every `picture_every` iterations), checkpoints (every
    `save_every`) and the final set; nothing is written without it. resume: continue from its checkpoint, if it has one;
    the result is identical to an uninterrupted run. overwrite: start over where the folder holds a run.
    profile: iterations to profile, such as range(100, 103): under `save_path`, folder profile, a Chrome trace and on a
    GPU a memory snapshot are written; the ten costliest ops are reported with the progress.
    callback: called as (iteration, loss / classes, images) after every iteration; the images are the live tensor,
    float32 [classes * ipc, C, H, W], on the device.
    progress: show a bar on a terminal, JSON lines elsewhere; verbose: with the plan of what is held in memory.
    tensorboard: also write losses and pictures for TensorBoard, under `save_path`.

    Ctrl-C takes effect between two iterations. With `save_path` the run is left with a checkpoint, and no other process
    can use the folder meanwhile.

    Returns the condensed set. Raises FastDMError, before the first iteration, for whatever cannot be used.

    >>> import fastdm
    >>> synthetic = fastdm.condense("digits", ipc=1, iterations=2, batch_real=16, device="cpu")
    >>> synthetic.images.shape, synthetic.images.dtype
    (torch.Size([10, 1, 8, 8]), torch.float32)
    """
    if ipc is not None:
        options["ipc"] = ipc
    own: Builder | None = options["network"] if callable(options.get("network")) else None
    if own is not None:
        options["network"] = own_name(own)
    dataset = open_dataset(data, data_path=data_path, image_size=image_size)
    settings = _settings(settings, recipe, dataset, options)
    networks = opened_pool(pool)
    settings = matching_pool(settings, networks, dataset)
    device = default_device(device)
    run_options = RunOptions(
        backend=backend,
        chunk_memory=chunk_memory,
        compile=compile,
        save_path=save_path,
        resume=resume,
        overwrite=overwrite,
        save_every=save_every,
        save_minutes=save_minutes,
        picture_every=picture_every,
        profile=profile,
        callback=callback,
        progress=progress,
        verbose=verbose,
        tensorboard=tensorboard,
    )
    return condense_resolved(dataset, settings.resolve(dataset, device), device, run_options, networks, own)


@within_memory(_SMALLER)
@undisturbed()
def condense_resolved(
    dataset: Dataset,
    settings: Settings,
    device: torch.device,
    options: RunOptions,
    pool: NetworkPool | None = None,
    own: Builder | None = None,
) -> SyntheticSet:
    """`condense` with a data set that is open, settings that are resolved for it, and a device that is there.

    own: builds the random networks, which `settings.network` then only names.
    """
    options.check(settings.iterations)
    _check_classes(dataset, settings)
    with (
        shared() as ranks,
        chosen_backend(options.backend, device),
        precision_context(settings.precision, device, deterministic=settings.deterministic) as dtype,
    ):
        share = shard(dataset, settings, ranks)
        step, plan = build_step(dataset, settings, device, dtype, options.chunk_memory, pool, share.part, own)
        synthetic = partial(_synthetic_set, dataset, settings, step.images, share, ranks)
        grid = partial(_write_grid, dataset, step.images, share, ranks)
        with closing(step), _run(dataset, settings, step, share, synthetic, grid, options, pool, own, ranks) as run:
            notes = [*_introduce(run, dataset, settings, device, plan, ranks, pool), *_prepare(run, step, device)]
            about = _about(dataset, device, plan, notes)
            run.describe(about)
            _look(options.observer, run.first_iteration, synthetic)
            for iteration in _iterations(run, step, device, ranks):
                with run.undivided():
                    loss = step(iteration)
                    run.after(iteration, loss, step.parts())
                if options.callback is not None:
                    options.callback(iteration, loss.item(), step.images)
                _look(options.observer, iteration + 1, synthetic)
            result = run.finish()
            run.describe(dataclasses.replace(about, peak_bytes=peak_memory(device)))
            return result


def _run(
    dataset: Dataset,
    settings: Settings,
    step: Step,
    share: Shard,
    synthetic: Callable[[], SyntheticSet],
    grid: Callable[[Path], None],
    options: RunOptions,
    pool: NetworkPool | None,
    own: Builder | None,
    ranks: Ranks,
) -> Run:
    """The run on disk, at the checkpoint that it resumes from."""
    state = State(
        {"images": step.images, "velocity": step.velocity},
        share.rows,
        lambda row: f"class {dataset.class_names[row // settings.ipc]!r}",
        lambda: step.is_whole,
    )
    # What the first checkpoints do not say.
    later = {**normalised(dataset), **({"network_layers_crc32": layers_crc32(step.network)} if own else {})}
    return Run(
        state,
        synthetic,
        grid,
        settings.iterations,
        dataclasses.asdict(settings),
        {
            **settings.resume_key(),
            **fingerprint(dataset),
            **later,
            **({"pool_crc32": pool.crc32()} if pool else {}),
        },
        options,
        resume_defaults={**dataclasses.asdict(Settings(clamp=False)), **later},
        ranks=ranks,
    )


def _introduce(
    run: Run,
    dataset: Dataset,
    settings: Settings,
    device: torch.device,
    plan: MemoryPlan,
    ranks: Ranks,
    pool: NetworkPool | None,
) -> Iterator[str]:
    """Say what is about to be done; yields what is worth a note in the run folder."""
    run.say(_summary(dataset, settings, device) + (f", {ranks.size} ranks" if ranks.size > 1 else ""))
    for note in (*_small_classes(dataset, settings), *_other_data(dataset, pool)):
        run.say(note)
        yield note
    if run.options.verbose:
        run.say(str(plan))


def _prepare(run: Run, step: Step, device: torch.device) -> Iterator[str]:
    """`prepare` the step; yields what is worth a note, once it is said."""
    with stderr_to(run.messages() if run.options.compile else None):
        notes = [*prepare(step, device, run.options.compile)]
    for note in notes:
        run.say(note)
        yield note


def _look(observer: Observer | None, iteration: int, synthetic: Callable[[], SyntheticSet]) -> None:
    """Let the observer look at the set, if it wants to: all ranks' together."""
    if observer is not None and observer.wants(iteration):
        observer.look(iteration, synthetic())


def _iterations(run: Run, step: Step, device: torch.device, ranks: Ranks) -> Iterable[int]:
    """The remaining iterations, some of them profiled if that is asked for."""
    folder, chosen = run.options.folder, run.options.profile
    if folder is None or chosen is None or not ranks.first:
        return run.iterations()
    within = partial(op_by_op, step, run.say)
    return recorded(run.iterations(), chosen, within, device, folder / "profile", run.say, run.messages())


def _about(dataset: Dataset, device: torch.device, plan: MemoryPlan, notes: list[str]) -> About:
    """What the run folder keeps besides settings and results."""
    kept = {
        "name": dataset.name,
        "class_names": dataset.class_names,
        "image_shape": dataset.image_shape,
        "mean": dataset.mean,
        "std": dataset.std,
        "train_images": len(dataset.train),
    }
    return About(kept, machine(device), dataclasses.asdict(plan), notes)


def _summary(dataset: Dataset, settings: Settings, device: torch.device) -> str:
    """What is about to be done, in a line."""
    where = f" ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else ""
    return (
        f"{dataset.name}: {dataset.num_classes} classes x {settings.ipc} images, from {len(dataset.train):,} real ones "
        f"of {'x'.join(map(str, dataset.image_shape))}; {settings.iterations:,} iterations, {settings.network}, "
        f"{settings.precision} on {device}{where}, seed {settings.seed}"
    )


def _synthetic_set(dataset: Dataset, settings: Settings, images: Tensor, share: Shard, ranks: Ranks) -> SyntheticSet:
    """The images of all ranks as they stand, copied to the CPU of each, with what is needed to use them."""
    return SyntheticSet(
        images=ranks.assemble(images, share.row_counts),
        class_names=dataset.class_names,
        mean=dataset.mean,
        std=dataset.std,
        dataset=dataset.name,
        settings=dataclasses.asdict(settings),
        partition=settings.partition,
    )


def _write_grid(dataset: Dataset, images: Tensor, share: Shard, ranks: Ranks, path: Path) -> None:
    """Write the public code's picture of all ranks' images, of which the first rank gets the pixels only."""
    pixels = ranks.gather(display_pixels(images, dataset.mean, dataset.std), share.row_counts)
    if pixels is not None:
        write_grid(path, pixels, dataset.num_classes)


def _small_classes(dataset: Dataset, settings: Settings) -> Iterator[str]:
    """A note if some classes have fewer than batch_real images."""
    if (smallest := int(dataset.train.class_sizes.min())) < settings.batch_real:
        yield f"classes with less than batch_real = {settings.batch_real} images use all; one has {smallest}"


def _other_data(dataset: Dataset, pool: NetworkPool | None) -> Iterator[str]:
    """A note if the networks of the pool were trained on another data set."""
    if pool is None:
        return
    if pool.dataset != dataset.name:
        yield f"the networks of the pool were trained on {pool.dataset}, not on {dataset.name}"
        return
    now = {**fingerprint(dataset), **normalised(dataset)}
    if any(pool.settings.get(name, value) != value for name, value in now.items()):
        what = f"a data set {dataset.name} of other images, or normalised otherwise"
        yield f"the networks of the pool were trained on {what}"


def fingerprint(dataset: Dataset) -> dict[str, Any]:
    """What distinguishes one data set from another when a run is resumed."""
    sizes = dataset.train.class_sizes
    some = dataset.train.read(torch.arange(0, len(dataset.train), max(1, len(dataset.train) // FINGERPRINT_IMAGES)))
    return {
        "dataset": dataset.name,
        "image_shape": list(dataset.image_shape),
        "class_sizes_crc32": zlib.crc32(sizes.numpy().tobytes()),
        "some_pixels_crc32": zlib.crc32(some.numpy().data),
    }


def normalised(dataset: Dataset) -> dict[str, Any]:
    """How pixels are normalised, which depends on every image where a data set has no standard; machines may round the
    last digits differently."""
    return {"mean": [round(each, 9) for each in dataset.mean], "std": [round(each, 9) for each in dataset.std]}


def _settings(settings: Settings | None, recipe: str | None, dataset: Dataset, options: dict[str, Any]) -> Settings:
    if recipe is not None:
        if settings is not None:
            raise FastDMError("a recipe is a set of settings: give settings or a recipe, and single settings by name")
        settings = recipe_settings(recipe, dataset, whole_number("ipc", options.get("ipc", Settings().ipc), 1))
    settings = Settings() if settings is None else settings
    if not isinstance(settings, Settings):
        raise FastDMError(f"settings is a {type(settings).__name__}; it must be fastdm.Settings(…)")
    known = [field.name for field in dataclasses.fields(Settings)]
    for name in options:
        if name not in known:
            raise unknown("setting", name, known)
    return dataclasses.replace(settings, **options)


def matching_pool(settings: Settings, pool: NetworkPool | None, dataset: Dataset) -> Settings:
    """The settings with the network of the pool, where they name none; FastDMError if the two do not go together."""
    if settings.networks == "random":
        if pool is not None:
            raise FastDMError("a pool of networks is given, but networks is 'random'; use networks='trained'")
        return settings
    if pool is None:
        raise FastDMError(
            "networks is 'trained', but there is no pool: train one with fastdm.train_pool and pass it as pool=…, or "
            "with `fastdm pool FILE` and pass --pool FILE"
        )
    if settings.network not in (None, pool.network):
        raise FastDMError(f"network is {settings.network!r}, but the pool holds {pool.network}; leave the network out")
    check_compatible("the pool of networks", pool.num_classes, pool.image_shape, dataset)
    return dataclasses.replace(settings, network=pool.network)


def _check_classes(dataset: Dataset, settings: Settings) -> None:
    """Every class must have the images that the settings ask of it."""
    size, label = (int(value) for value in dataset.train.class_sizes.min(0))
    smallest = f"class {dataset.class_names[label]!r} of {dataset.name}"
    if size == 0:
        raise FastDMError(f"{smallest} has no images; leave it out or add some")
    parts = settings.partition**2
    if settings.init == "real" and size < settings.ipc * parts:
        remedy = f"an ipc of at most {size // parts}" if size >= parts else "a smaller partition"
        raise FastDMError(
            f"ipc is {settings.ipc}{f' with {parts} images in each' if parts > 1 else ''}, but {smallest} has {size} "
            f"images to start from; use {remedy}, or init 'noise'"
        )
    if settings.small_classes == "error" and size < settings.batch_real:
        raise FastDMError(
            f"batch_real is {settings.batch_real}, but {smallest} has {size} images; "
            f"use a batch_real of at most {size}, or small_classes 'use_all'"
        )
