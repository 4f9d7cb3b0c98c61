"""A pool of trained networks: snapshots of several trainings, to match images in, and its file."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from fastdm.errors import FastDMError
from fastdm.networks.architectures import build_network
from fastdm.networks.model import Network, aligned
from fastdm.system.checks import all_finite, parse_json
from fastdm.system.files import crc32, user_path, writing

FORMAT = "fastdm-networks-1"
_KEYS = frozenset(("format", "about", "crc32", "checksum"))


@dataclass(frozen=True, eq=False)
class NetworkPool:
    """Snapshots of the trainings of some networks, as `fastdm.train_pool` gives them.

    weights: float32 [networks, states, parameters], on the CPU; a row holds the parameters of `build` in their order,
    flattened. State 0 is the random start, the last one the end of the training.
    network: architecture; image_shape: (C, H, W); num_classes, dataset: of the data set that they were trained on;
    accuracies: test accuracy in [0, 1] of the last state of each network, none where there is no test part; settings:
    what they were trained with.

    >>> import fastdm
    >>> pool = fastdm.train_pool("digits", networks=1, epochs=1, states=3, network="ConvNetD1", device="cpu")
    >>> pool.networks, pool.states, pool.weights.dtype
    (1, 3, torch.float32)
    """

    weights: Tensor = field(repr=False)
    network: str
    image_shape: tuple[int, int, int]
    num_classes: int
    dataset: str
    accuracies: tuple[float, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        parameters = sum(parameter.numel() for parameter in self.build("meta").parameters())
        shape = list(self.weights.shape)
        if self.weights.dtype != torch.float32 or len(shape) != 3 or shape[2] != parameters or 0 in shape:
            raise FastDMError(
                f"the weights of a pool of {self.network} must be float32 [networks, states, {parameters}], not "
                f"{self.weights.dtype} {shape}"
            )

    @property
    def networks(self) -> int:
        return self.weights.shape[0]

    @property
    def states(self) -> int:
        """Snapshots of each network."""
        return self.weights.shape[1]

    def build(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Network:
        """A network of the pool's architecture, with a classifier, without the parameters that a norm cancels; no
        parameter takes a gradient."""
        network = build_network(
            self.network,
            channels=self.image_shape[0],
            num_classes=self.num_classes,
            image_size=self.image_shape[1:],
            affine=False,
            drawn=False,
            device=device,
            dtype=dtype,
        )
        return network.requires_grad_(False)

    def crc32(self) -> str:
        """Checksum of the weights' bytes."""
        return str(crc32(self.weights.contiguous()))

    def summary(self) -> dict[str, Any]:
        """What is in the pool, without the weights."""
        return {
            "network": self.network,
            "networks": self.networks,
            "states": self.states,
            "dataset": self.dataset,
            "classes": self.num_classes,
            "image_shape": tuple(self.image_shape),
            "accuracies": tuple(self.accuracies),
            "settings": dict(self.settings),
        }

    def save(self, path: str | Path) -> None:
        """Write the pool as a `.safetensors` file, atomically."""
        if Path(path).suffix != ".safetensors":
            raise FastDMError(f"{path} must end in .safetensors")
        about = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "weights"}
        text = json.dumps({**about, "settings": dict(self.settings)})
        weights = self.weights.contiguous()
        checksums = {"crc32": self.crc32(), "checksum": str(crc32(weights, text=text))}
        with writing(path) as temporary:
            save_file({"weights": weights}, temporary, {"format": FORMAT, "about": text, **checksums})

    @classmethod
    def load(cls, path: str | Path) -> "NetworkPool":
        """Read what `save` wrote. Raises FastDMError, naming the file, for anything else."""
        path = user_path(path)
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != FORMAT or not metadata.keys() <= _KEYS:
                    raise FastDMError(f"it is not of this version of fastdm ({FORMAT})")
                weights = file.get_tensor("weights")
            text, expected = metadata["about"], {"crc32": str(crc32(weights))}
            if "checksum" in metadata:  # the first pools have that of the weights alone
                expected["checksum"] = str(crc32(weights, text=text))
            if any(metadata.get(name) != value for name, value in expected.items()):
                raise FastDMError("its checksum does not match")
            if not all_finite(weights):
                raise FastDMError("it has weights that are not finite numbers")
            about = parse_json(text)
            about["image_shape"] = tuple(about["image_shape"])
            about["accuracies"] = tuple(about["accuracies"])
            return cls(weights=weights, **about)
        except (SafetensorError, OSError, ValueError, TypeError, KeyError) as error:
            raise FastDMError(f"{path} is not a pool of trained networks, or is damaged: {error}") from error


def opened_pool(pool: object) -> NetworkPool | None:
    """The pool, read where its file is given; FastDMError for anything else."""
    if pool is None or isinstance(pool, NetworkPool):
        return pool
    if not isinstance(pool, str | Path):
        raise FastDMError(
            f"pool is a {type(pool).__name__}; it must be a NetworkPool, as train_pool gives it, or its file"
        )
    return NetworkPool.load(pool)


def unread_pool(
    network: str, image_shape: tuple[int, int, int], num_classes: int, networks: int, states: int
) -> NetworkPool:
    """A pool of which only the shape is known, on the meta device: to plan for."""
    channels, height, width = image_shape
    built = build_network(
        network,
        channels=channels,
        num_classes=num_classes,
        image_size=(height, width),
        affine=False,
        drawn=False,
        device="meta",
    )
    parameters = sum(parameter.numel() for parameter in built.parameters())
    weights = torch.empty(networks, states, parameters, device="meta")
    return NetworkPool(weights, network, image_shape, num_classes, "planned")


def flatten_parameters(network: Network) -> Tensor:
    """The parameters of a network in their order, as a row of a pool: float32 [parameters] on the CPU."""
    rows = [parameter.detach().contiguous().flatten() for parameter in network.parameters()]
    return torch.cat(rows).float().cpu()


@torch.no_grad()
def load_parameters(network: Network, row: Tensor) -> None:
    """Set the parameters of a network, in place and on their device, to those of a row of a pool."""
    start = 0
    for parameter in network.parameters():
        stop = start + parameter.numel()
        parameter.copy_(row[start:stop].view_as(parameter))
        start = stop


def in_memory_order(rows: Tensor, network: Network) -> Tensor:
    """Rows of a pool as they lie in a buffer of `one_buffer`.

    rows: [..., parameters], of a pool of the network's architecture.
    """
    parts = rows.split([parameter.numel() for parameter in network.parameters()], -1)
    return torch.cat([_in_order(part, like) for part, like in zip(parts, network.parameters(), strict=True)], -1)


def _in_order(part: Tensor, like: Tensor) -> Tensor:
    leading = part.dim() - 1
    order = sorted(range(like.dim()), key=like.stride, reverse=True)
    sorted_part = part.unflatten(-1, like.shape).permute(*range(leading), *(leading + axis for axis in order))
    return functional.pad(sorted_part.flatten(leading), (0, aligned(like.numel()) - like.numel()))


def one_buffer(network: Network) -> Tensor:
    """Let the parameters of a network lie in one buffer, each in its memory format and well aligned; returns it."""
    parameters = [*network.parameters()]
    buffer = parameters[0].new_empty(sum(aligned(parameter.numel()) for parameter in parameters))
    start = 0
    for parameter in parameters:
        parameter.data = buffer.as_strided(parameter.shape, parameter.stride(), start)
        start += aligned(parameter.numel())
    return buffer
