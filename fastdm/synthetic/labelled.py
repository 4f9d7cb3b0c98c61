"""Other people's images and labels → class-sorted images, as a `SyntheticSet` holds them."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fastdm.data.arrays import plain
from fastdm.data.normalisation import per_channel
from fastdm.errors import FastDMError
from fastdm.synthetic.public_file import kind
from fastdm.system.notes import Tally

_TOLERANCE = 1e-3
"""How far pixels in [0, 1] may be outside by rounding."""


def class_sorted(
    what: str, images: Tensor, labels: Tensor | None, classes: int | None, tally: Tally
) -> tuple[Tensor, list[int]]:
    """Images float32 [N, C, H, W] sorted by class, and the classes that occur, each with as many images.

    labels: integers [N]; floating-point numbers that are whole, and soft labels [N, classes], of which the largest
    counts, are converted, which `tally` names; None: the images are sorted, and belong to `classes` in equal shares.
    classes: those of the data set, None if that is not known.
    Raises FastDMError, naming `what`, for labels that do not fit.
    """
    if not (images.ndim == 4 and images.is_floating_point() and len(images)):
        raise FastDMError(f"{what} contains images that are not a floating-point [N, C, H, W] tensor: {kind(images)}")
    pixels = plain(what, images).float()
    if labels is None:
        if classes is None:
            raise FastDMError(f"{what} has no labels; load it with its data set (dataset=…), which says the classes")
        if len(images) % classes:
            raise FastDMError(
                f"{what} has no labels, and {len(images)} images cannot be divided among {classes} classes"
            )
        tally.say(f"there are no labels: the images are taken as sorted, {len(images) // classes} of each class")
        return pixels.contiguous(), [*range(classes)]
    if classes is not None and labels.ndim == 2 and labels.shape[1] not in (1, classes):
        raise FastDMError(f"{what} has soft labels for {labels.shape[1]} classes, but its data set has {classes}")
    if labels.ndim and len(labels) != len(images):
        raise FastDMError(f"{what} holds {len(images)} images and {len(labels)} labels; there must be one for each")
    hard = _hard(what, plain(what, labels), tally)
    if hard.min() < 0:
        raise FastDMError(f"{what} holds the label {int(hard.min())}; labels count from 0")
    if classes is not None and hard.max() >= classes:
        raise FastDMError(f"{what} holds the label {int(hard.max())}, but its data set has {classes} classes")
    present, counts = hard.unique(return_counts=True)
    if (counts != counts[0]).any():
        raise FastDMError(f"{what} holds classes of {int(counts.min())} and of {int(counts.max())} images")
    everything = int(present[-1]) + 1 if classes is None else classes
    if len(present) < everything:
        tally.say(f"{len(present)} of {everything} classes are in it")
    return pixels[hard.argsort(stable=True)], present.tolist()


def normalised_pixels(
    what: str, pixels: Tensor, mean: Sequence[float], std: Sequence[float], is_normalised: bool, tally: Tally
) -> Tensor:
    """The pixels, normalised by mean and std unless they are so already."""
    low, high = (float(value) for value in pixels.aminmax())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise FastDMError(f"{what} holds pixels that are not finite numbers")
    if is_normalised:
        if low >= 0 and high <= 1:
            tally.say(
                f"all pixels lie in [0, 1], {low:.3g}..{high:.3g}, and are taken as normalised; if they are not, load "
                "it with normalised=False (--not_normalised)"
            )
        elif low >= 0:
            tally.say(
                f"no pixel is below 0, {low:.3g}..{high:.3g}, and they are taken as normalised; if not, divide "
                "values of 0..255 by 255 and load it with normalised=False (--not_normalised)"
            )
        return pixels
    if not (low >= -_TOLERANCE and high <= 1 + _TOLERANCE):
        raise FastDMError(
            f"{what} has pixels of {low:.3g}..{high:.3g}, though its layout has them in [0, 1]; if they are "
            "normalised, load it with normalised=True (--normalised)"
        )
    return (pixels - per_channel(mean)) / per_channel(std)


def _hard(what: str, labels: Tensor, tally: Tally) -> Tensor:
    if labels.ndim == 2 and labels.shape[1] > 1 and not labels.is_complex():
        if labels.is_floating_point() and not labels.isfinite().all():
            raise FastDMError(f"{what} holds labels that are not finite numbers")
        tally.add("soft labels replaced by the class of the largest", what, len(labels))
        return labels.float().argmax(1)
    if labels.ndim != 1 or labels.is_complex() or labels.dtype == torch.bool:
        raise FastDMError(f"{what} contains labels that are not an integer [N] tensor: {kind(labels)}")
    if labels.is_floating_point():
        if not (labels.isfinite().all() and (labels == labels.round()).all() and labels.abs().max() < 2**31):
            raise FastDMError(f"{what} contains labels that are not whole numbers: {kind(labels)}")
        tally.add("floating-point labels taken as whole numbers", what, len(labels))
    return labels.long()
