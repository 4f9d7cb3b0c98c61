"""Pool.draw, gather and to."""

import logging
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from fastdm.data.pool import Pool
from fastdm.errors import FastDMError
from fastdm.system import native as native_module

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)


@pytest.fixture(params=["C++", "PyTorch"])
def pool(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pool]:
    """Classes of 20, 7 and 30 images, with the extension and without."""
    if request.param == "C++":
        pytest.importorskip("fastdm._native")
    else:
        monkeypatch.setattr("fastdm.data.pool.native", lambda: None)
    images = torch.randint(0, 256, (57, 3, 6, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Pool(images, torch.tensor([0, 20, 27, 57]))


def test_a_draw_is_that_of_the_kernels(pool: Pool) -> None:
    from fastdm.kernels import draw

    for seed, step in ((0, 0), (7, 1), (-3, 2**32 - 1), (2**63 - 1, 5)):
        expected = draw(torch.tensor([seed, step]), pool.class_offsets, 7)
        assert torch.equal(pool.draw(seed, step, 7), expected)
        assert torch.equal(pool.draw(seed, step, 7, torch.tensor([2, 1, 0])[::2]), expected[[2, 0]])


def test_a_draw_of_something_else_is_refused_as_by_the_kernels(pool: Pool) -> None:
    for classes, error, message in (
        (torch.tensor([0], dtype=torch.int32), TypeError, "classes is torch.int32; it must be torch.int64"),
        (torch.tensor([3]), FastDMError, "classes holds 3 to 3; it must stay within 0 to 2"),
        (torch.tensor([[0]]), FastDMError, "it must have 1 dimensions"),
        ([0], TypeError, "classes is a list; it must be a tensor"),
    ):
        with pytest.raises(error, match=message):
            pool.draw(0, 0, 2, classes)  # type: ignore[arg-type]
    with pytest.raises(FastDMError, match="n is -1; it must not be negative"):
        pool.draw(0, 0, -1)


def test_more_than_a_class_has_cannot_be_drawn(pool: Pool) -> None:
    with pytest.raises(FastDMError, match=r"class 1 has 7 images, but 8 .* replace=True"):
        pool.draw(0, 0, 8)
    drawn = pool.draw(0, 0, 8, replace=True)
    assert (drawn.diff() >= 0).all()
    assert torch.equal(
        torch.bucketize(drawn, pool.class_offsets, right=True) - 1, torch.arange(3)[:, None].expand(3, 8)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_gather_normalises_and_lays_out(pool: Pool, dtype: torch.dtype) -> None:
    index = torch.tensor([[3, 56], [0, 3]])
    picked = pool.images[index]
    assert torch.equal(pool.gather(index), picked)
    per_channel = torch.tensor([MEAN, STD]).view(2, 3, 1, 1).double()
    exact = (picked.double() / 255 - per_channel[0]) / per_channel[1]
    planar = pool.gather(index, dtype=dtype, mean=MEAN, std=STD)
    # Half an ulp of the number stored, and of x·scale, scale and shift, all below 8, in float32.
    bound = 8 * 4 * 2.0**-24 + (exact.abs() * 2.0**-8 if dtype == torch.bfloat16 else 0)
    assert ((planar - exact).abs() <= bound).all()
    last = pool.gather(index, dtype=dtype, layout="last", mean=MEAN, std=STD)
    assert torch.equal(last, planar.movedim(2, -1))
    rgbx = pool.gather(index, layout="rgbx")
    assert torch.equal(rgbx[..., :3], picked.movedim(2, -1))
    assert not rgbx[..., 3].any()


def test_gather_fills_the_buffer_it_is_given(pool: Pool) -> None:
    out = torch.full((2, 3, 6, 5), 9, dtype=torch.uint8)
    assert pool.gather(torch.tensor([1, 2]), out=out) is out
    assert torch.equal(out, pool.images[1:3])
    for wrong in (out[:1], out.float(), torch.empty(2, 3, 5, 6, dtype=torch.uint8).transpose(2, 3)):
        with pytest.raises(FastDMError, match=r"out is .* it must be a contiguous torch\.uint8"):
            pool.gather(torch.tensor([1, 2]), out=wrong)


def test_impossible_conversions_are_refused(pool: Pool) -> None:
    index = torch.tensor([0])
    with pytest.raises(FastDMError, match=r"cannot be gathered as torch\.float16"):
        pool.gather(index, dtype=torch.float16, mean=MEAN, std=STD)
    for mean, std, message in (
        (MEAN[:1], STD[:1], "must have 3 values, one per channel"),
        (MEAN, (0.2, 0.0, 0.2), "std is 0 in a channel; it must be above 0"),
        (MEAN, (0.2, float("nan"), 0.2), "nan is not a finite number"),
        ((float("inf"), 0.0, 0.0), STD, "inf is not a finite number"),
    ):
        with pytest.raises(FastDMError, match=message):
            pool.gather(index, dtype=torch.bfloat16, mean=mean, std=std)
    with pytest.raises(FastDMError, match="images are on meta: index them there"):
        pool.to("meta").gather(index)


@pytest.mark.parametrize(
    "images", [torch.zeros(9, 3, 6, 10, dtype=torch.uint8)[..., ::2], torch.zeros(9, 3, 6, 5)], ids=["gaps", "float32"]
)
def test_images_with_gaps_or_of_another_dtype_are_refused(pool: Pool, images: Tensor) -> None:
    with pytest.raises(FastDMError, match="must be uint8, one after the other in memory"):
        Pool(images, torch.tensor([0, 9])).gather(torch.tensor([0]))


def test_what_bytes_would_be_normalised_by_does_not_matter(pool: Pool) -> None:
    assert torch.equal(pool.gather(torch.tensor([4]), mean=MEAN, std=(0.0, 1.0, 1.0)), pool.images[4:5])


@pytest.mark.parametrize("index", [[-1], [57], [0, 57]])
def test_images_that_are_not_there_are_refused(pool: Pool, index: list[int]) -> None:
    with pytest.raises(FastDMError, match="there are 57 images"):
        pool.gather(torch.tensor(index))


def test_to_keeps_what_is_already_there(pool: Pool) -> None:
    assert pool.to("cpu") is pool
    assert pool.to("meta").images.device.type == "meta"


def test_a_missing_core_is_said_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(native_module.extension, "load", lambda: None)
    native_module.native.cache_clear()
    with caplog.at_level(logging.WARNING, "fastdm"):
        assert native_module.native() is None
        assert native_module.native() is None
    native_module.native.cache_clear()
    assert len(caplog.records) == 1
    assert "without its C++ core" in caplog.text


def test_a_part_of_the_classes_is_a_view_that_draws_as_the_whole(pool: Pool) -> None:
    part = pool.classes(1, 3)
    assert part.images.data_ptr() == pool.images[20].data_ptr()
    assert part.class_offsets.tolist() == [0, 7, 37]
    assert torch.equal(part.draw(5, 6, 7), pool.draw(5, 6, 7)[1:] - 20)
    last = part.classes(1, 2)
    assert last.first_class == 2
    assert torch.equal(last.draw(5, 6, 9, replace=True), pool.draw(5, 6, 9, replace=True)[2:] - 27)
    assert torch.equal(part.draw(5, 6, 7, torch.tensor([1])), pool.draw(5, 6, 7, torch.tensor([2])) - 20)


def test_batches_of_a_part_are_those_of_the_whole(pool: Pool) -> None:
    from fastdm.data.batches import real_images

    key = torch.tensor([1, 2])
    whole = real_images(pool, "in place", 10, 1, key)
    rows = slice(10, 27)  # the first class has 10 images in a batch, the second all of its 7, the third 10
    (expected,) = whole.batches([rows])
    for residence in ("in place", "streamed"):
        images = real_images(pool.classes(1, 3), residence, 10, 1, key)
        images.begin(2)
        (batch,) = images.batches([slice(0, 17)])
        assert torch.equal(
            batch.images if batch.index is None else batch.images[batch.index], expected.images[expected.index]
        )
        images.close()


def test_every_iteration_has_its_own_images_in_whatever_order(pool: Pool) -> None:
    """Also after one of which only a part was used; those of the next are read ahead meanwhile."""
    from fastdm.data.batches import real_images

    key = torch.tensor([1, 0])
    there = real_images(pool, "in place", 10, 1, key)
    streamed = real_images(pool, "streamed", 10, 1, key)
    parts = [slice(0, 10), slice(10, 27)]
    for iteration, used in ((2, 2), (3, 2), (7, 2), (2, 1), (3, 2), (3, 1), (4, 2)):
        key[1] = iteration
        streamed.begin(iteration)
        batches = streamed.batches(parts)
        for _, batch, expected in zip(range(used), batches, there.batches(parts), strict=False):
            assert torch.equal(batch.images, expected.images[expected.index])
        if used == 2:
            assert next(batches, None) is None
        batches.close()
    streamed.close()


@pytest.mark.parametrize(("first", "stop"), [(-1, 2), (2, 2), (0, 4)])
def test_classes_that_are_not_there_are_refused(pool: Pool, first: int, stop: int) -> None:
    with pytest.raises(FastDMError, match=f"classes {first} to {stop} are not a part of 3 classes"):
        pool.classes(first, stop)


def test_waiting_for_a_slow_file_is_counted(pool: Pool) -> None:
    """Reading begins when the first batch is asked for, so that all of it is waited for."""
    import time
    from dataclasses import replace

    from fastdm.data.batches import real_images

    class Slow:
        def ready(self) -> bool:
            return False

        def gather(self, index: torch.Tensor, out: torch.Tensor) -> None:
            time.sleep(0.02)
            out.copy_(pool.images[index])

        def part(self, rows: slice) -> "Slow":
            raise AssertionError("nobody asks for a part")

    key = torch.tensor([1, 2])
    for residence, least in (("in place", 0.0), ("streamed", 0.02)):
        images = real_images(replace(pool, backing=Slow()), residence, 5, 1, key)
        images.begin(2)
        next(images.batches([slice(0, 15)]))
        assert images.waited >= least
        assert images.waited == 0 or residence == "streamed"
        images.close()


def test_no_more_threads_than_pytorch_uses() -> None:
    """3,000 images are work for many threads; a process that may use one has none besides it."""
    pytest.importorskip("fastdm._native")
    code = """
import os, torch
from fastdm.data.pool import Pool

torch.set_num_threads(1)
pool = Pool(torch.zeros(3000, 3, 32, 32, dtype=torch.uint8), torch.tensor([0, 3000]))
index = pool.draw(0, 0, 3000).flatten()

def times():
    tasks = sorted(os.listdir("/proc/self/task"))
    return {task: open(f"/proc/self/task/{task}/schedstat").read().split()[0] for task in tasks}

pool.gather(index)
before = times()
pool.gather(index)
print(sum(before[task] != time for task, time in times().items()))
"""
    environment = {**os.environ, "FASTDM_THREADS": "4"}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "1"
