"""Networks of the user's own: any module that classifies, or that embeds, built by a function."""

import re
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fastdm.errors import FastDMError
from fastdm.networks.architectures import is_network
from fastdm.networks.fusing import fuse
from fastdm.networks.model import Network
from fastdm.system.memory import is_exhausted

Builder = Callable[[], nn.Module]
"""Builds a network anew: a module that takes images [N, C, H, W] and gives logits [N, classes]. One to match images in
has a method `embed` that gives their features [N, …]."""

_DRAWN = (nn.Conv2d, nn.Linear, nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm)
"""The layers whose parameters `initialise` draws."""


def network_name(network: str | Builder) -> str:
    """What results call a network: its name, or that of the function that builds it (of a partial, the inner one's)."""
    if isinstance(network, str):
        return network
    network = getattr(network, "func", network)
    return str(getattr(network, "__name__", type(network).__name__))


def own_name(builder: Builder) -> str:
    """The name that settings have for a network of the user's: never one by which `build_network` knows another."""
    name = network_name(builder)
    return f"{name} (own)" if is_network(name) else name


def build_own(
    builder: Builder, seed: int, device: torch.device | str = "cpu", image_shape: tuple[int, int, int] | None = None
) -> nn.Module:
    """The module that a builder gives, on the device, its blocks fused; to classify images of `image_shape`, if any.

    Its weights are what it draws itself: PyTorch's global generators are seeded with `seed` meanwhile, and then are as
    before. It is channels_last, as the images are, unless it refuses those. Raises FastDMError for what is not a
    module, and for a builder that cannot be called, or is a module itself.
    """
    name = network_name(builder)
    if isinstance(builder, nn.Module):
        raise FastDMError(f"the network is a {name} itself; give a function without arguments that builds one anew")
    with _generators(seed):
        try:
            module = builder()
        except Exception as error:  # whatever a function of others raises
            if is_exhausted(error):
                raise
            raise FastDMError(f"calling {name}() to build a network failed: {_first_line(error)}") from error
        if not isinstance(module, nn.Module):
            raise FastDMError(f"{name} gives a {type(module).__name__}; it must build a torch.nn.Module")
        if any(map(is_lazy, (*module.parameters(), *module.buffers()))):
            raise FastDMError(f"{name} gives lazy layers that are not initialised; let it send them some images first")
        if any(each.is_meta for each in (*module.parameters(), *module.buffers())):
            raise FastDMError(f"{name} gives a module on the device meta, which has no weights; build it on the CPU")
        module.to(device)
        fuse(module)
        _choose_format(module, image_shape, device)
    return module


@contextmanager
def _generators(seed: int) -> Iterator[None]:
    """PyTorch's global generators seeded, for one thread at a time, and afterwards as they were."""
    with _SEEDING, torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


_SEEDING = threading.RLock()


def _choose_format(module: nn.Module, image_shape: tuple[int, int, int] | None, device: torch.device | str) -> None:
    """Make a module channels_last, as the images are that it is given, or make those contiguous for it where they must
    be: where it takes a `view` of them, or of what its layers make of them."""
    module.to(memory_format=torch.channels_last)
    if image_shape is None:
        return
    modes = {each: each.training for each in module.modules()}
    try:
        with torch.no_grad():
            module.eval()(_two_images(image_shape, device))
    except Exception as error:  # whatever a module of others raises
        if is_exhausted(error):
            raise
        module.to(memory_format=torch.contiguous_format)
        module.register_forward_pre_hook(_contiguous)
    finally:
        for each, training in modes.items():
            each.training = training


def _contiguous(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(each.contiguous() for each in args)


def check_own(builder: Builder, image_shape: tuple[int, int, int], num_classes: int) -> None:
    """Raise FastDMError for a network that cannot classify such images, having sent it two, or cannot be trained."""
    name, network = network_name(builder), build_own(builder, 0, image_shape=image_shape)
    _check_new(name, builder, network)
    for mode, when in ((False, ""), (True, " while it is trained")):
        with torch.no_grad(), _generators(0):
            given = _of_two_images(name, network.train(mode), image_shape)
        if not (isinstance(given, Tensor) and given.shape == (2, num_classes)):
            shown = f"{list(given.shape)}" if isinstance(given, Tensor) else f"a {type(given).__name__}"
            raise FastDMError(
                f"{name} gives {shown} for 2 images{when}; it must give logits, a tensor {[2, num_classes]}"
            )
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise FastDMError(f"{name} has no parameters that can be trained")


def _check_new(name: str, builder: Builder, module: nn.Module) -> None:
    """Raise FastDMError for a builder that gives the module again, whose weights are changed."""
    if build_own(builder, 0) is module:
        raise FastDMError(f"{name} gives the same module each time, whose weights are changed; build a new one in it")


def build_own_frozen(
    builder: Builder, image_shape: tuple[int, int, int], num_classes: int, device: torch.device, dtype: torch.dtype
) -> Network:
    """A network to match images in whose features are those that the module's `embed` gives; nothing in it is trained.

    Raises FastDMError for a module without `embed`, for one that cannot take the images or send a gradient back to
    them, and for layers that draw numbers themselves.
    """
    name, module = network_name(builder), build_own(builder, 0)
    _check_new(name, builder, module)
    if not callable(getattr(module, "embed", None)):
        raise FastDMError(f"{name} has no method embed, which gives the features that are matched; add one")
    for layer in module.modules():
        if isinstance(layer, nn.modules.dropout._DropoutNd) and layer.p:
            raise FastDMError(
                f"{name} has a {type(layer).__name__}, whose draws do not follow from the seed: leave it out"
            )
    embed = _Embedding(module.requires_grad_(False))
    with _generators(0):
        _choose_format(embed, image_shape, "cpu")
    with torch.enable_grad():
        features = _of_two_images(name, embed.and_back, image_shape)
    if not (isinstance(features, Tensor) and features.ndim > 1 and len(features) == 2 and features.numel()):
        raise FastDMError(f"the embed of {name} must give a tensor of features for each image")
    if not features.requires_grad:
        raise FastDMError(f"the embed of {name} must give features that have a gradient to the images")
    network = Network(nn.Sequential(embed), features[0].numel(), num_classes, frozen=True)
    return network.to(device, dtype)


def layers_crc32(network: nn.Module) -> int:
    """Checksum of what a network consists of: its layers as they print themselves, and the shapes of what they hold. It
    knows nothing of what is computed between the layers."""
    held = [(name, list(tensor.shape)) for name, tensor in (*network.named_parameters(), *network.named_buffers())]
    printed = re.sub(r" at 0x[0-9a-f]+", "", str(network))  # of functions, somewhere else in each process
    return zlib.crc32(f"{printed} {held}".encode())


def can_be_drawn(module: nn.Module) -> bool:
    """Whether `initialise` draws all parameters of a module anew: it holds none but those of the layers it knows.

    Others that such a layer may have, such as what `torch.nn.utils.weight_norm` makes of its weight, are not known.
    """
    return all(
        own <= {"weight", "bias"} if isinstance(layer, _DRAWN) else not own
        for layer in module.modules()
        for own in [{name for name, _ in layer.named_parameters(recurse=False)}]
    )


class _Embedding(nn.Module):
    """A module by its features."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.module.embed(images)  # type: ignore[operator]
        return features

    def and_back(self, images: Tensor) -> Tensor:
        """The features, after sending a gradient back to the images, if they have one."""
        features: Tensor = self(images)
        if isinstance(features, Tensor) and features.requires_grad:
            torch.autograd.grad(features.sum(), images)
        return features


def _two_images(image_shape: tuple[int, int, int], device: torch.device | str) -> Tensor:
    """Two images, in the memory format that all have."""
    return torch.zeros(2, *image_shape, dtype=torch.float32, device=device).contiguous(
        memory_format=torch.channels_last
    )


def _of_two_images(name: str, function: Callable[[Tensor], object], image_shape: tuple[int, int, int]) -> object:
    """What it gives; of images that need a gradient, if gradients are enabled."""
    try:
        return function(_two_images(image_shape, "cpu").requires_grad_(torch.is_grad_enabled()))
    except Exception as error:  # whatever a module of others raises
        if is_exhausted(error):
            raise
        images = f"{'x'.join(map(str, image_shape))} images"
        raise FastDMError(f"{name} cannot take {images}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
