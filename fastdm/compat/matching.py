"""`dm_loss`: the loss of one iteration of `main_DM.py`, for code that changes something else in its loop."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastdm.augmentation import Strategy, augment
from fastdm.compat.parts import images_at_once, keep_freed_memory
from fastdm.errors import FastDMError, whole_number
from fastdm.kernels import class_mean_difference
from fastdm.kernels.checks import check_no_second_derivative
from fastdm.networks.fusing import fused_blocks

Embed = Callable[[Tensor], Tensor]


def dm_loss(
    embed: Embed, image_syn: Tensor, real: Tensor | Sequence[Tensor], strategy: str | None, seed: int
) -> Tensor:
    """The DM loss of one iteration (Zhao & Bilen, WACV 2023, equation 4), a scalar with gradient to `image_syn`:

    Σ_c ‖ mean_i ψ(A(real_c,i)) − mean_j ψ(A(synthetic_c,j)) ‖².

    embed: ψ, any function of images [N, C, H, W] that gives [N, D], such as `net.embed`. image_syn: [classes * ipc, C,
    H, W], class-sorted, differentiable. real: normalised images of every class, [classes, n, C, H, W] or one [n_c, C,
    H, W] for each; no gradient flows to them. strategy: families of the augmentation A joined by underscores, "none" or
    None for none. Every class has parameters of its own, the same for its real and its synthetic images; they follow
    from `seed` and the class alone, and no global generator is touched: give every iteration another seed.

    The sum is that of a loop over the classes, to rounding. On a CPU, a module (`net` or `net.embed`) gets as many
    images at a time as suit its cache, of several classes or some of one class, and blocks of the public ConvNet are
    one op each (see `fastdm.compat.evaluate_synset`), whose gradient cannot be differentiated again. Everything else
    gets all real images, then all synthetic ones: any embed on a GPU, a function of your own, and a module with
    BatchNorm, whose statistics are those of all classes, as in `main_DM.py`. Where no parameter of the module needs a
    gradient, the gradient is computed with the loss and no layer's results are kept for it.

    Raises FastDMError for tensors that do not fit together.

    >>> import fastdm, torch
    >>> real, synthetic = torch.rand(10, 4, 1, 8, 8), torch.rand(20, 1, 8, 8, requires_grad=True)
    >>> loss = fastdm.dm_loss(lambda images: images.flatten(1), synthetic, real, "flip_crop", seed=0)
    >>> loss.backward()
    >>> synthetic.grad.shape
    torch.Size([20, 1, 8, 8])
    """
    families = Strategy.parse(strategy)
    _check(embed, image_syn, real, families)
    classes, device = len(real), image_syn.device
    key = torch.tensor([whole_number("seed", seed, 0), 0], device=device)
    numbers = torch.arange(classes, device=device)
    tables = families.draw(key, numbers, (image_syn.shape[2], image_syn.shape[3]))
    network = _module(embed)
    keep_freed_memory(device)
    is_differentiated = image_syn.requires_grad and torch.is_grad_enabled()
    with fused_blocks(network):
        loss_of = _LossOfClasses(embed, real, len(image_syn) // classes, tables, images_at_once(network, image_syn))
        if is_differentiated and network is not None and not any(each.requires_grad for each in network.parameters()):
            loss: Tensor = _WithGradient.apply(image_syn, loss_of)
            return loss
        return torch.stack([loss_of(image_syn[loss_of.rows(part)], part) for part in loss_of.parts()]).sum()


@dataclass(frozen=True)
class _LossOfClasses:
    """The loss of some classes, a function of their synthetic images.

    at_once: images that go through embed together, whatever their class; None for all.
    """

    embed: Embed
    real: Tensor | Sequence[Tensor]
    ipc: int
    tables: Sequence[Tensor]
    at_once: int | None

    def parts(self) -> list[range]:
        """The classes, as many at a time as suit `at_once`."""
        classes = len(self.real)
        size = classes if self.at_once is None else max(1, self.at_once // self.ipc)
        return [range(first, min(first + size, classes)) for first in range(0, classes, size)]

    def rows(self, part: range) -> slice:
        """Their synthetic images."""
        return slice(part.start * self.ipc, part.stop * self.ipc)

    def __call__(self, synthetic: Tensor, part: range) -> Tensor:
        device = synthetic.device
        chosen = torch.arange(part.start, part.stop, device=device)
        real = [*self.real[part.start : part.stop]]
        counts = torch.tensor([len(images) for images in real], device=device)
        with torch.no_grad():
            output_real = self._embedded(torch.cat(real), chosen.repeat_interleave(counts))
        output_syn = self._embedded(synthetic, chosen.repeat_interleave(self.ipc))
        offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        own_offsets = torch.arange(len(part) + 1, device=device) * self.ipc
        return class_mean_difference(output_real, output_syn, offsets, own_offsets)

    def _embedded(self, images: Tensor, group: Tensor) -> Tensor:
        """ψ(A(x)) of images of the classes `group`."""
        size = self.at_once or len(images)
        outputs = []
        for x, rows in zip(images.split(size), group.split(size), strict=True):
            output = self.embed(augment(x, self.tables, rows) if self.tables else x)
            if not isinstance(output, Tensor) or output.ndim < 2 or len(output) != len(x):
                given = list(output.shape) if isinstance(output, Tensor) else f"a {type(output).__name__}"
                raise FastDMError(f"embed gives {given} of {len(x)} images; it must give [{len(x)}, D]")
            if not output.is_floating_point():
                raise FastDMError(f"embed gives {output.dtype}; its features must be floats")
            outputs.append(output.flatten(1))
        return torch.cat(outputs)


class _WithGradient(torch.autograd.Function):
    """The sum of the losses, whose gradient is computed with it, so that what one part keeps for its gradient is given
    back before the next one begins."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, loss_of: _LossOfClasses) -> Tensor:
        gradient = torch.zeros_like(images)
        losses = []
        for part in loss_of.parts():
            rows = loss_of.rows(part)
            with torch.enable_grad():
                chosen = images[rows].detach().requires_grad_()
                loss = loss_of(chosen, part)
            (gradient[rows],) = torch.autograd.grad(loss, chosen)
            losses.append(loss.detach())
        ctx.save_for_backward(gradient)
        return torch.stack(losses).sum()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        check_no_second_derivative("dm_loss")
        (gradient,) = ctx.saved_tensors
        return grad * gradient, None


def _module(embed: Embed) -> nn.Module | None:
    """The module that embed is, or is a method of."""
    owner = embed if isinstance(embed, nn.Module) else getattr(embed, "__self__", None)
    return owner if isinstance(owner, nn.Module) else None


def _check(embed: object, image_syn: Tensor, real: Tensor | Sequence[Tensor], strategy: Strategy) -> None:
    if not isinstance(real, Tensor | Sequence):
        raise FastDMError(f"real is a {type(real).__name__}; it must be a tensor, or a list of one for each class")
    if not callable(embed):
        raise FastDMError(f"embed is a {type(embed).__name__}; it must be a function, such as net.embed")
    for name, images in (("image_syn", image_syn), *((f"real[{c}]", images) for c, images in enumerate(real))):
        if not isinstance(images, Tensor) or not images.is_floating_point():
            kind = images.dtype if isinstance(images, Tensor) else f"a {type(images).__name__}"
            raise FastDMError(f"{name} is {kind}; it must be normalised images, a tensor of floats")
    classes = len(real)
    shape = image_syn.shape[1:]
    if image_syn.ndim != 4 or classes == 0 or len(image_syn) == 0 or len(image_syn) % classes:
        raise FastDMError(
            f"image_syn is {list(image_syn.shape)}; it must be [classes * ipc, C, H, W], and real has {classes} classes"
        )
    if strategy and shape[0] not in (1, 3):
        raise FastDMError(f"the images have {shape[0]} channels; with {str(strategy)!r} they must have 1 or 3")
    for c, images in enumerate(real):
        if images.shape[1:] != shape or len(images) == 0 or images.device != image_syn.device:
            raise FastDMError(
                f"real[{c}] is {list(images.shape)} on {images.device}; it must be [n, {', '.join(map(str, shape))}] "
                f"on {image_syn.device}, like image_syn"
            )
