"""Soft labels: what trained networks make of the images of a set."""

from dataclasses import replace

import torch

from fastdm.errors import FastDMError
from fastdm.evaluation.testing import rows_together
from fastdm.evaluation.training import LabelledImages
from fastdm.networks.trained import NetworkPool, load_parameters
from fastdm.synthetic.synthetic_set import SyntheticSet
from fastdm.system.device import precision_context

_AT_ONCE = 256


@torch.no_grad()
def relabel(synthetic: SyntheticSet, pool: NetworkPool, device: torch.device | None = None) -> SyntheticSet:
    """The set with soft labels: for each decoded image the mean of the probabilities that the pool's networks give.

    They are those at the end of each training, computed in float32 whatever PyTorch is set to. Raises FastDMError for
    a pool of other classes or images.
    """
    ours = (synthetic.num_classes, tuple(synthetic.images.shape[1:]))
    theirs = (pool.num_classes, tuple(pool.image_shape))
    if ours != theirs:
        raise FastDMError(f"the set has {ours[0]} classes of {ours[1]} images, but the pool {theirs[0]} of {theirs[1]}")
    device = device or torch.device("cpu")
    network = pool.build(device)
    network.eval()
    examples = LabelledImages.of(synthetic, synthetic.mean, synthetic.std, device)
    total = torch.zeros(len(examples), pool.num_classes, device=device)
    batches = rows_together([network], examples, _AT_ONCE)
    with precision_context("fp32", device):
        for row in pool.weights[:, -1]:
            load_parameters(network, row.to(device))
            for rows in batches:
                total[rows] += network(examples.batch(rows)).softmax(1)
    return replace(synthetic, soft_labels=(total / pool.networks).to(torch.float16).cpu())
