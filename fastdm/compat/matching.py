"""`dm_loss`: the loss of one iteration of `main_DM.py`, for code that changes something else in its loop."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fastdm.augmentation import Strategy, augment
from fastdm.errors import FastDMError, whole_number
from fastdm.kernels import class_mean_difference


def dm_loss(
    embed: Callable[[Tensor], Tensor],
    image_syn: Tensor,
    real: Tensor | Sequence[Tensor],
    strategy: str | None,
    seed: int,
) -> Tensor:
    """The DM loss of one iteration (Zhao & Bilen, WACV 2023, equation 4), a scalar with gradient to `image_syn`:

    Σ_c ‖ mean_i ψ(A(real_c,i)) − mean_j ψ(A(synthetic_c,j)) ‖².

    embed: ψ, any function of images [N, C, H, W] that gives [N, D], such as `net.embed`; it sees all classes together,
    twice: the real images without gradient, and the synthetic ones. image_syn: [classes * ipc, C, H, W], class-sorted,
    differentiable. real: normalised images of every class, [classes, n, C, H, W] or one [n_c, C, H, W] for each.
    strategy: families of the augmentation A joined by underscores, "none" or None for none. Every class has parameters
    of its own, the same for its real and its synthetic images; they follow from `seed` and the class alone, and no
    global generator is touched: give every iteration another seed.

    With InstanceNorm it is the sum that a loop over the classes gives, to rounding, in one pass. A network with
    BatchNorm normalises over all classes here, in the loop over one class. Raises FastDMError for
    tensors that do not fit together.

    >>> import fastdm, torch
    >>> real, synthetic = torch.rand(10, 4, 1, 8, 8), torch.rand(20, 1, 8, 8, requires_grad=True)
    >>> loss = fastdm.dm_loss(lambda images: images.flatten(1), synthetic, real, "flip_crop", seed=0)
    >>> loss.backward()
    >>> synthetic.grad.shape
    torch.Size([20, 1, 8, 8])
    """
    classes = len(real)
    shape = image_syn.shape[1:]
    if image_syn.ndim != 4 or classes == 0 or len(image_syn) == 0 or len(image_syn) % classes:
        raise FastDMError(
            f"image_syn is {list(image_syn.shape)}; it must be [classes * ipc, C, H, W], and real has {classes} classes"
        )
    for c, images in enumerate(real):
        if images.shape[1:] != shape or len(images) == 0 or images.device != image_syn.device:
            raise FastDMError(
                f"real[{c}] is {list(images.shape)} on {images.device}; it must be [n, {', '.join(map(str, shape))}] "
                f"on {image_syn.device}, like image_syn"
            )
    device = image_syn.device
    counts = torch.tensor([len(images) for images in real], device=device)
    ipc = len(image_syn) // classes
    numbers = torch.arange(classes, device=device)
    key = torch.tensor([whole_number("seed", seed, 0), 0], device=device)
    tables = Strategy.parse(strategy).draw(key, numbers, (shape[1], shape[2]))
    joined = real.flatten(0, 1) if isinstance(real, Tensor) else torch.cat([*real])
    with torch.no_grad():
        output_real = _embedded(embed, _augmented(joined, tables, numbers.repeat_interleave(counts)))
    output_syn = _embedded(embed, _augmented(image_syn, tables, numbers.repeat_interleave(ipc)))
    real_offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return class_mean_difference(output_real, output_syn, real_offsets, torch.arange(classes + 1, device=device) * ipc)


def _augmented(images: Tensor, tables: Sequence[Tensor], group: Tensor) -> Tensor:
    return augment(images, tables, group) if tables else images


def _embedded(embed: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    output = embed(images)
    if output.ndim < 2 or len(output) != len(images):
        raise FastDMError(f"embed gives {list(output.shape)} of {len(images)} images; it must give [{len(images)}, D]")
    return output.flatten(1)
