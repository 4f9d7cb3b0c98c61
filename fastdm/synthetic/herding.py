"""Herding: the real images whose mean feature stays closest to that of their class (Welling, ICML 2009)."""

import itertools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from fastdm.augmentation import augment
from fastdm.data.pool import Dataset
from fastdm.errors import FastDMError
from fastdm.synthetic.synthetic_set import SyntheticSet

_AT_ONCE = 256


def herding_order(features: Tensor, count: int) -> Tensor:
    """The rows of `features`, [N, D], that herding picks, in its order: int64 [count], each once.

    Row k is the one that brings the mean of all rows picked so far closest to the mean of all N:
    argmin_x ‖μ − (x + Σ_{j<k} x_j) / k‖, as iCaRL picks its exemplars (Rebuffi et al., CVPR 2017).

    >>> herding_order(torch.tensor([[0.0], [1.0], [2.0], [9.0]]), 2).tolist()
    [2, 3]
    """
    features = features.double()
    mean, halved = features.mean(0), features.square().sum(1) / 2
    wanted, taken = torch.zeros_like(mean), torch.zeros(len(features), dtype=torch.bool, device=features.device)
    picked = []
    for _ in range(count):
        wanted += mean  # k μ, less what is picked
        # ‖wanted − x‖² is smallest where wanted · x − ‖x‖² / 2 is largest.
        score = (features @ wanted - halved).masked_fill(taken, -torch.inf)
        best = int(score.argmax())
        taken[best] = True
        wanted -= features[best]
        picked.append(best)
    return torch.tensor(picked)


def herded_selection(dataset: Dataset, ipc: int, embed: Callable[[Tensor], Tensor]) -> SyntheticSet:
    """`ipc` real images per class by herding on the features that `embed` gives of normalised images [N, C, H, W].

    Features are brought to length 1, as iCaRL does. Raises FastDMError where a class has fewer images, and for features
    that are not finite.
    """
    smallest = int(dataset.train.class_sizes.min())
    if not 1 <= ipc <= smallest:
        raise FastDMError(f"ipc is {ipc}; it must be at least 1 and at most {smallest}, the size of the smallest class")
    offsets = dataset.train.class_offsets.tolist()
    rows = []
    for name, (first, end) in zip(dataset.class_names, itertools.pairwise(offsets), strict=True):
        parts = torch.arange(first, end).split(_AT_ONCE)
        features = torch.cat([embed(_normalised(dataset, part)).flatten(1).float().cpu() for part in parts])
        if not features.isfinite().all():
            raise FastDMError(f"the features of class {name!r} are not finite: no image is nearest to their mean")
        rows.append(first + herding_order(functional.normalize(features), ipc))
    return SyntheticSet(
        images=_normalised(dataset, torch.cat(rows)),
        class_names=dataset.class_names,
        mean=dataset.mean,
        std=dataset.std,
        dataset=dataset.name,
        settings={"method": "herding", "ipc": ipc},
    )


def _normalised(dataset: Dataset, rows: Tensor) -> Tensor:
    return augment(dataset.train.read(rows), [], mean=dataset.mean, std=dataset.std)
