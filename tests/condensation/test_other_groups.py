"""A program that has initialised a process group of its own, of any backend, shares the work in it."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import fastdm
from tests.ranks import SMALL, said, start, wait

BACKEND = "gpus_only"


def _create(store: dist.Store, rank: int, size: int, timeout: timedelta) -> dist.ProcessGroup:
    return dist.ProcessGroupGloo(store, rank, size, timeout)


@contextmanager
def group_for_gpus_only() -> Iterator[None]:
    """A process group that has collectives on CUDA alone, as NCCL's does."""
    dist.Backend.register_backend(BACKEND, _create, devices=["cuda"])
    dist.init_process_group(BACKEND)
    try:
        yield
    finally:
        dist.destroy_process_group()


def found_by_condensing(folder: Path) -> tuple[torch.Tensor, dict[str, list[float]]]:
    synthetic = fastdm.condense("digits", iterations=4, save_path=folder, save_every=2, picture_every=3, **SMALL)
    evaluation = fastdm.evaluate(
        synthetic, "digits", networks=["ConvNetD1"], num_eval=3, epochs=1, device="cpu", precision="fp32"
    )
    return synthetic.images, dict(evaluation.accuracies)


def within_the_group(folder: Path) -> None:
    with pytest.raises(RuntimeError, match="No backend type associated with device type cpu"):
        dist.all_reduce(torch.ones(1))
    found = found_by_condensing(folder / "both")
    assert dist.get_backend() == BACKEND
    torch.save(found, folder / f"found-{dist.get_rank()}.pt")


def test_a_group_without_collectives_on_the_cpu_does(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    processes = start(2, within_the_group, folder, folder=folder, join=group_for_gpus_only)
    assert wait(processes) == [0, 0], said(folder)
    images, accuracies = found_by_condensing(tmp_path / "alone")
    for rank in range(2):
        their_images, their_accuracies = torch.load(folder / f"found-{rank}.pt")
        assert torch.equal(their_images, images)
        assert their_accuracies == accuracies
