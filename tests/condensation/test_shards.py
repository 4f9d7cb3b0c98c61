"""Classes are divided into contiguous ranges of nearly equal work."""

from itertools import pairwise

import pytest
import torch

from fastdm.condensation.settings import Settings
from fastdm.condensation.shards import balanced, class_work
from tests.oracles import random_dataset


@pytest.mark.parametrize("parts", [1, 2, 3, 7, 40])
def test_every_part_has_a_class_and_none_is_lost(parts: int) -> None:
    work = torch.randint(1, 1000, (40,), generator=torch.Generator().manual_seed(parts))
    bounds = balanced(work, parts)
    assert (bounds[0], bounds[-1], len(bounds)) == (0, 40, parts + 1)
    assert all(first < stop for first, stop in pairwise(bounds))
    # A bound is at most half of the largest class away from its place, unless parts are single classes.
    if parts < 10:
        sums = [int(work[first:stop].sum()) for first, stop in pairwise(bounds)]
        assert max(sums) <= int(work.sum()) / parts + int(work.max())


def test_a_large_class_has_a_part_of_its_own() -> None:
    assert balanced(torch.tensor([1, 1, 100, 1, 1]), 3) == [0, 2, 3, 5]
    assert balanced(torch.tensor([100, 1, 1]), 3) == [0, 1, 2, 3]
    assert balanced(torch.tensor([1, 1, 100]), 3) == [0, 1, 2, 3]


def test_the_work_of_a_class_is_that_of_its_real_images_and_three_times_its_decoded_ones() -> None:
    settings = Settings(ipc=2, batch_real=8, partition=3)
    assert class_work(random_dataset([5, 8, 20], (1, 9, 9)), settings).tolist() == [5 + 54, 8 + 54, 8 + 54]
