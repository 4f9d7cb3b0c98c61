"""Streams to a CUDA device: pinned buffers, copies on a stream of their own."""

import pytest
import torch

from fastdm.data.pool import Pool

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


def test_chunks_arrive_whole_while_earlier_ones_are_in_use() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (400, 3, 32, 32), dtype=torch.uint8, generator=generator)
    pool = Pool(images, torch.arange(0, 401, 100))
    busy = torch.randn(2048, 2048, device="cuda")
    sums = []
    for chunk in pool.stream([pool.draw(0, step, 64) for step in range(20)], 64 * 3072, depth=2, device="cuda"):
        busy = (busy @ busy).tanh()  # the sum below waits for this, the next copy must wait for the sum
        sums.append(chunk.images.long().sum() + (busy[0, 0] * 0).long())
    expected = [pool.images[rows].long().sum() for step in range(20) for rows in pool.draw(0, step, 64)]
    assert torch.equal(torch.stack(sums).cpu(), torch.stack(expected))


def test_a_pool_moves_to_the_device() -> None:
    pool = Pool(torch.arange(5000 * 3, dtype=torch.int64).to(torch.uint8).view(5000, 3, 1, 1), torch.tensor([0, 5000]))
    assert torch.equal(pool.to("cuda").images.cpu(), pool.images)
