"""The shapes that are measured: random data sets of the size of known ones, and what an iteration on them must cost."""

import dataclasses

import torch
from torch.utils.flop_counter import FlopCounterMode

from fastdm.condensation.settings import Settings
from fastdm.data.pool import Dataset, Pool
from fastdm.networks.architectures import build_network
from fastdm.networks.model import Block, Network


@dataclasses.dataclass(frozen=True)
class Workload:
    """class_size: images of each class in the pool."""

    name: str
    classes: int
    size: int
    ipc: int
    class_size: int
    batch_real: int = 256
    channels: int = 3
    network: str | None = None

    def settings(self, **options: object) -> Settings:
        return Settings(
            ipc=self.ipc,
            batch_real=self.batch_real,
            network=self.network,
            init="noise",
            **options,  # type: ignore[arg-type]
        )

    def dataset(self, device: torch.device) -> Dataset:
        """Random patchwork with a tint of its class, so that class means differ; the pool is on the device."""
        generator = torch.Generator(device).manual_seed(0)
        patch = -(-self.size // 4)

        def random(high: int, *shape: int) -> torch.Tensor:
            return torch.randint(high, shape, dtype=torch.uint8, device=device, generator=generator)

        coarse = random(180, self.classes * self.class_size, self.channels, 4, 4)
        tint = random(76, self.classes, 1, self.channels, 1, 1)
        coarse.view(self.classes, self.class_size, self.channels, 4, 4).add_(tint)
        images = coarse.repeat_interleave(patch, 2).repeat_interleave(patch, 3)[..., : self.size, : self.size]
        offsets = torch.arange(self.classes + 1) * self.class_size
        names = tuple(f"class {c}" for c in range(self.classes))
        pool = Pool(images.contiguous(), offsets)
        return Dataset(self.name, pool, None, names, (0.5,) * self.channels, (0.25,) * self.channels)

    def flops(self) -> int:
        """Of the convolutions in one iteration: real images forward, synthetic ones forward and back to the pixels."""
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            self._network().to("meta").embed(torch.empty(1, self.channels, self.size, self.size, device="meta"))
        return self._images() * int(counter.get_total_flops())

    def bytes(self, precision: str) -> int:
        """The least that an iteration moves: the result of every convolution and of every pooling, out and in once."""
        itemsize = 2 if precision == "bf16" else 4
        elements, size, channels = 0, self.size, self.channels
        for block in self._network().features:
            assert isinstance(block, Block)
            elements += channels * size**2
            channels = block.conv.out_channels
            elements += 2 * channels * size**2 + channels * (size // 2) ** 2
            size //= 2
        return self._images() * elements * itemsize

    def _images(self) -> int:
        """Passes of single images through the network."""
        return self.classes * (self.batch_real + 2 * self.ipc)

    def _network(self) -> Network:
        tiny = dataclasses.replace(self, class_size=1).dataset(CPU)
        name = self.settings().resolve(tiny, CPU).network
        assert name is not None
        return build_network(name, channels=self.channels, num_classes=self.classes, image_size=self.size, frozen=True)

    def smoke(self) -> "Workload":
        """The same in a size that runs anywhere in a second."""
        return dataclasses.replace(
            self,
            classes=4,
            size=16,
            ipc=min(self.ipc, 2),
            class_size=16,
            batch_real=8,
            network="ConvNetW32",
        )


CPU = torch.device("cpu")
CIFAR10 = Workload("CIFAR-10 ipc 10", 10, 32, 10, 5000)
SCALE = [
    Workload("CIFAR-10 ipc 1", 10, 32, 1, 5000),
    CIFAR10,
    Workload("CIFAR-10 ipc 50", 10, 32, 50, 5000),
    Workload("CIFAR-100 ipc 10", 100, 32, 10, 500),
    Workload("Tiny ImageNet ipc 10", 200, 64, 10, 500),
    Workload("ImageNet-1K 64² ipc 1", 1000, 64, 1, 260),
    Workload("ImageNet-1K 64² ipc 10", 1000, 64, 10, 260),
]
