"""What is matched between real and synthetic images. DM matches the class means of the embedding."""

from collections.abc import Callable

import torch
from torch import Tensor

from fastdm.kernels import class_mean_difference
from fastdm.networks import Network


@torch.no_grad()
def real_class_means(
    network: Network, images: Callable[[slice], Tensor], offsets: Tensor, group: Tensor, slice_images: int
) -> Tensor:
    """Mean embedding of every class of a batch, without gradient: float32 (float64 of float64) [classes, D].

    images: gives the images of some rows of the batch, [rows, C, H, W], when they are needed; the batch is class-sorted
    by int64 offsets [classes + 1]; group: int64 [N], the class of each image, which says the same again; slice_images:
    how many images go through the network at once. On a CPU few, so that they and a layer's activations stay in its
    cache; a network that looks at the whole batch (BatchNorm) needs all of them.
    """
    if slice_images >= len(group):
        return network.embed_mean(images(slice(None)), offsets)
    # Sums by a product with the 0/1 membership of images in classes: exact, in a fixed order, and index_add is slow.
    classes = torch.arange(len(offsets) - 1, device=group.device)
    membership = group == classes[:, None]
    total: Tensor | None = None
    for start in range(0, len(group), slice_images):
        rows = slice(start, start + slice_images)
        features = network.embed(images(rows))
        features = features.to(torch.promote_types(features.dtype, torch.float32))
        share = membership[:, rows].to(features.dtype) @ features
        total = share if total is None else total.add_(share)
    assert total is not None
    return total / offsets.diff().clamp(min=1)[:, None]


def distribution_matching_loss(network: Network, real_means: Tensor, synthetic: Tensor, offsets: Tensor) -> Tensor:
    """Σ_c ‖ real_means[c] − mean_j ψ(synthetic[c, j]) ‖² (the paper's equation 4): float32 scalar.

    real_means: float32 [classes, D]; synthetic: [N, C, H, W], class-sorted by int64 offsets [classes + 1]; the gradient
    flows to `synthetic`.
    """
    one_each = torch.arange(len(real_means) + 1, device=real_means.device)
    return class_mean_difference(real_means, network.embed(synthetic), one_each, offsets)
