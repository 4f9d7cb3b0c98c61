"""The step against the public loop, literally transcribed, with equal draws."""

import dataclasses
import gc
import weakref
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fastdm.condensation.build import build_step
from fastdm.condensation.plan import MemoryPlan
from fastdm.condensation.settings import Settings
from fastdm.condensation.step import Step
from fastdm.data.packed.reading import open_packed
from fastdm.data.packing import pack
from fastdm.data.pool import Dataset, Pool
from fastdm.kernels import use_backend
from fastdm.networks.architectures import build_network
from fastdm.networks.drawn import RandomNetworks
from fastdm.objectives.objective import Segments
from fastdm.synthetic.initial import initial_images
from tests.oracles import BF16_BOUND, CPU, clear_classes, public_run, random_dataset

STEPS = 4


def run_step(
    dataset: Dataset,
    settings: Settings,
    *,
    chunk_classes: int,
    micro_batch: int,
    steps: int = STEPS,
    compile: bool = False,
    dtype: torch.dtype = torch.float32,
    part: Pool | None = None,
) -> tuple[Tensor, list[float]]:
    settings = settings.resolve(dataset, CPU)
    assert settings.network is not None
    network = build_network(
        settings.network,
        channels=dataset.image_shape[0],
        num_classes=dataset.num_classes,
        image_size=dataset.image_shape[1:],
        frozen=True,
    ).to(dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    networks = RandomNetworks(network)
    plan = MemoryPlan(
        chunk_classes, micro_batch, "in place" if dataset.train.backing is None else "streamed", 0, 0, 0, 0, 0
    )
    images = initial_images(dataset, settings.ipc, settings.seed, init=settings.init, part=part)
    step = Step(dataset, images, networks, settings, plan, dtype, part)
    with closing(step):
        if compile:
            step.compile()
        losses = [step(iteration).item() for iteration in range(steps)]
    return step.images, losses


@pytest.mark.parametrize("aug_mode", ["S", "M"])
def test_equals_the_public_loop(aug_mode: str) -> None:
    """In the classes of which no activation can cross a ReLU by rounding: in norm, their errors are 3e-6 (Winograd's
    convolution), and five times that is kept clear."""
    dataset = random_dataset([24, 20, 31, 16, 17, 18, 19, 22], (3, 8, 8))
    settings = Settings(ipc=1, batch_real=16, network="ConvNetW32", aug_mode=aug_mode, seed=3)
    exact, losses, clear = clear_classes(dataset, settings, 20, 5 * 3e-6)
    assert clear.sum() >= 3

    def error(images: Tensor) -> float:
        return (images - exact)[clear].abs().max().item()

    # What float32 makes of the literal loop is the yardstick: a rewritten sum may lose a few times as much.
    yardstick = error(public_run(dataset, settings, 20, torch.float32)[0])
    assert error(initial_images(dataset, settings.ipc, settings.seed)) > 1000 * yardstick
    for chunk_classes, micro_batch in ((8, 128), (3, 48), (2, 7), (1, 16)):
        found, found_losses = run_step(
            dataset, settings, chunk_classes=chunk_classes, micro_batch=micro_batch, steps=20
        )
        assert error(found) <= 8 * yardstick
        # That of all classes: later it follows the images of those that are not clear.
        assert found_losses[0] == pytest.approx(losses[0], rel=1e-5)


@pytest.mark.parametrize("compile", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("aug_mode", ["S", "M"])
def test_batch_norm_equals_the_public_loop(aug_mode: str, compile: bool) -> None:
    """As above, but with joint statistics every image moves all others: all must be clear, which few iterations are.

    The convolutions are plain sums here, with a tenth of the error.
    """
    dataset = random_dataset([24, 20, 31], (3, 8, 8))
    settings = Settings(ipc=2, batch_real=16, network="ConvNetBN", aug_mode=aug_mode, seed=5)
    nearest: list[float] = []
    watch = lambda z: nearest.append(z.abs().min().item())  # noqa: E731
    exact, losses = public_run(dataset, settings, STEPS, torch.float64, watch=watch)
    assert min(nearest) > 5 * 3e-7
    rounded, _ = public_run(dataset, settings, STEPS, torch.float32)
    yardstick = (rounded - exact).abs().max()
    assert (exact - initial_images(dataset, settings.ipc, settings.seed)).abs().max() > 1000 * yardstick
    # Its only chunk is the whole batch.
    found, found_losses = run_step(dataset, settings, chunk_classes=3, micro_batch=48, compile=compile)
    assert (found - exact).abs().max() <= 8 * yardstick
    torch.testing.assert_close(found_losses, losses, rtol=1e-5, atol=0)


@pytest.mark.parametrize("aug_mode", ["S", "M"])
def test_batch_norm_equals_the_public_loop_for_long(aug_mode: str) -> None:
    """With networks in float64, whose activations come to no other side of a ReLU, and float32 images in both loops."""
    dataset = random_dataset([24, 20, 31])
    # The families that only move pixels are exact in float32; the backend that normalises by the oracle's formula.
    strategy = "crop_cutout_flip"
    settings = Settings(ipc=2, batch_real=16, network="ConvNetBN", strategy=strategy, aug_mode=aug_mode, seed=3)
    with use_backend("reference"):
        expected, expected_losses = public_run(dataset, settings, 20, torch.float64, image_dtype=torch.float32)
        images, losses = run_step(dataset, settings, chunk_classes=3, micro_batch=48, steps=20, dtype=torch.float64)
    # Both round gradients, momentum and images alike, unless their float64 sums, 1e-15 apart, lie on either side of the
    # middle between two float32 numbers; then a pixel is one spacing off and may bring others, and the momentum, with
    # it. Allowed are four spacings. A loss is rounded twice more, and moves with the images.
    eps = torch.finfo(torch.float32).eps
    torch.testing.assert_close(images, expected, rtol=0, atol=4 * eps * 2)
    assert images.abs().max() < 4  # where the spacing is 2 · eps
    torch.testing.assert_close(losses, expected_losses, rtol=4 * eps, atol=0)


def test_a_step_and_its_memory_are_gone_with_its_last_name() -> None:
    """Not only when garbage is collected: a step holds most of a device's memory."""
    dataset = random_dataset([8, 8], (3, 8, 8))
    settings = Settings(ipc=1, batch_real=8, network="ConvNetW32").resolve(dataset, CPU)
    step, _ = build_step(dataset, settings, CPU, torch.float32)
    step(0)
    images = weakref.ref(step.images)
    gc.disable()
    try:
        del step
        assert images() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_bfloat16_stays_near_float32(seed: int) -> None:
    dataset = random_dataset([24, 20, 31])
    settings = Settings(ipc=2, batch_real=16, network="ConvNetW32", seed=seed)
    initial = initial_images(dataset, settings.ipc, settings.seed)
    wide, narrow = (
        run_step(dataset, settings, chunk_classes=3, micro_batch=48, steps=1, dtype=dtype)[0] - initial
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert 0 < (narrow - wide).norm() < BF16_BOUND * wide.norm()


def test_the_seed_decides_everything() -> None:
    dataset = random_dataset([20, 20])
    settings = Settings(ipc=1, batch_real=8, network="ConvNetW32")
    first, _ = run_step(dataset, settings, chunk_classes=2, micro_batch=16)
    again, _ = run_step(dataset, settings, chunk_classes=2, micro_batch=16)
    other, _ = run_step(dataset, dataclasses.replace(settings, seed=1), chunk_classes=2, micro_batch=16)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_small_class_is_used_whole() -> None:
    """Classes of different sizes: the batch is ragged, and a class smaller than batch_real enters with all its images.

    A class with exactly as many images as are drawn must not depend on batch_real.
    """
    dataset = random_dataset([5, 9])
    settings = Settings(ipc=1, batch_real=100, network="ConvNetW32", strategy="none")
    whole, _ = run_step(dataset, settings, chunk_classes=2, micro_batch=64, steps=2)
    exact, _ = run_step(dataset, dataclasses.replace(settings, batch_real=9), chunk_classes=1, micro_batch=4, steps=2)
    torch.testing.assert_close(whole, exact, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "dtype"),
    [
        pytest.param({}, torch.float32, id="means"),
        pytest.param({}, torch.bfloat16, id="bfloat16"),
        pytest.param({"objective": "mmd", "init": "noise"}, torch.float32, id="mmd"),
        pytest.param({"objective": "cov"}, torch.float32, id="covariances"),
    ],
)
def test_a_class_does_not_depend_on_those_that_it_is_computed_with(options: dict[str, Any], dtype: torch.dtype) -> None:
    """On those of its chunk as little as on those of its process: to the last bit, also in a ragged batch."""
    dataset = random_dataset([40, 30, 35, 20, 50], (3, 8, 8))
    settings = Settings(ipc=2, batch_real=33, network="ConvNetD1", **options)
    parts = [dataset.train.classes(first, stop) for first, stop in ((0, 1), (1, 4), (4, 5))]
    for micro_batch in (20, 66):
        whole, losses = run_step(dataset, settings, chunk_classes=5, micro_batch=micro_batch, steps=2, dtype=dtype)
        for chunk_classes in (1, 2):
            runs = [
                run_step(
                    dataset,
                    settings,
                    chunk_classes=chunk_classes,
                    micro_batch=micro_batch,
                    steps=2,
                    dtype=dtype,
                    part=part,
                )
                for part in (None, *parts)
            ]
            assert torch.equal(runs[0][0], whole)
            assert torch.equal(torch.cat([images for images, _ in runs[1:]]), whole)
            assert sum(part_losses[1] for _, part_losses in runs[1:]) == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize("most", [1, 4, 7, 33, 100])
def test_the_passes_of_a_chunk_hold_every_image_once_and_no_pass_is_too_large(most: int) -> None:
    counts = (5, 30, 1, 0, 33, 7)
    segments = Segments(slice(0, 76), torch.tensor([0, 5, 35, 36, 36, 69, 76]), torch.empty(0), counts, 33)
    passes = list(segments.passes(most))
    assert [row for _, rows in passes for row in range(rows.start, rows.stop)] == list(range(76))
    assert all(rows.stop - rows.start <= most for _, rows in passes)
    starts = [sum(counts[:number]) for number in range(len(counts) + 1)]
    for classes, rows in passes:
        assert starts[classes.start] <= rows.start < rows.stop <= starts[classes.stop]
        whole = (starts[classes.start], starts[classes.stop]) == (rows.start, rows.stop)
        assert whole or classes.stop - classes.start == 1


def test_streamed_equals_resident(tmp_path: Path) -> None:
    """A packed file, mapped or read directly, gives the images that the pool in memory gives, at any chunking."""
    dataset = random_dataset([12, 9, 11])
    pack(dataset, tmp_path / "set.fastdm")
    settings = Settings(ipc=1, batch_real=10, network="ConvNetD1")  # more than the second class has: a ragged batch
    resident, _ = run_step(dataset, settings, chunk_classes=2, micro_batch=64)
    for io in ("mmap", "direct"):
        packed = dataclasses.replace(open_packed(tmp_path / "set.fastdm", io=io), mean=dataset.mean, std=dataset.std)
        streamed, _ = run_step(packed, settings, chunk_classes=2, micro_batch=64)
        assert torch.equal(streamed, resident)
