"""One iteration of distribution matching, over chunks of classes."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from fastdm.augmentation import Strategy, augment
from fastdm.data.pool import Dataset
from fastdm.graph import captured, unchanged
from fastdm.matching import distribution_matching_loss, real_class_means
from fastdm.networks import Network, initialise
from fastdm.plan import Plan
from fastdm.real import StreamedImages, real_images
from fastdm.settings import Settings


class Step:
    """The synthetic images, and the iteration that changes them.

    images: float32 [classes * ipc, C, H, W], normalised, class-sorted, learnt in place; velocity: SGD's momentum
    buffer, same shape. Everything random is a function of (seed, iteration, class); nothing waits for the host.
    """

    def __init__(
        self, dataset: Dataset, images: Tensor, network: Network, settings: Settings, plan: Plan, dtype: torch.dtype
    ) -> None:
        assert settings.lr_img is not None
        device = images.device
        self.images = images
        self.velocity = torch.zeros_like(images)
        self._gradient = torch.zeros_like(images)
        self._network = network
        self._dtype = dtype
        self._lr = settings.lr_img
        self._momentum = settings.momentum
        self._strategy = Strategy.parse(settings.strategy, settings.aug_mode)
        self._mean = torch.tensor(dataset.mean, device=device)
        self._std = torch.tensor(dataset.std, device=device)
        self._key = torch.tensor([settings.seed, 0], device=device)
        self._classes = torch.arange(dataset.num_classes, device=device)
        self._real = real_images(dataset.train, settings.batch_real, device)
        counts = dataset.train.class_sizes.clamp(max=settings.batch_real)
        self._chunks = _chunks(counts, settings.ipc, plan.chunk_classes, device)
        self._slice_images = plan.slice_images
        self._run: Callable[[int], Tensor] = self._iterate

    def __call__(self, iteration: int) -> Tensor:
        """Change the images once; returns the loss divided by the number of classes, float32, on their device."""
        self._key[1] = iteration
        return self._run(iteration)

    @contextmanager
    def uncaptured(self) -> Iterator[None]:
        """Run op by op within the block, also where a graph is recorded, so that a profiler sees the ops."""
        run, self._run = self._run, self._iterate
        try:
            yield
        finally:
            self._run = run

    def compile(self) -> float:
        """Let torch.compile fuse the network's layers; returns the seconds that it took, RuntimeError where it fails.

        The blocks of InstanceNorm, ReLU and average pooling are single ops already: for them it takes 0 seconds.
        """
        if self._network.is_fused:
            return 0.0
        start = time.perf_counter()
        self._network.features.compile()
        # Every shape of chunk is compiled twice, with and without gradient, and other networks count too.
        with torch._dynamo.config.patch(recompile_limit=64), unchanged([self.images, self.velocity]):
            self._iterate(0)
        return time.perf_counter() - start

    def capture(self) -> None:
        """Record the iteration as a CUDA graph, so that the host only starts it; RuntimeError where that fails.

        One graph holds all chunks, whatever their shapes: one launch per iteration, and no copies between chunks.
        """
        if isinstance(self._real, StreamedImages):
            raise RuntimeError("the real images do not fit on the device and are streamed")
        replay = captured(lambda: self._iterate(0), [self.images, self.velocity])
        self._run = lambda _: replay()

    def close(self) -> None:
        """Stop reading ahead."""
        self._real.close()

    def _iterate(self, iteration: int) -> Tensor:
        """The iteration that `_key` names; its number is told again for what runs on the host."""
        initialise(self._network, self._key)
        tables = self._strategy.draw(self._key, self._classes, (self.images.shape[2], self.images.shape[3]))

        loss = torch.zeros((), device=self.images.device)
        batches = self._real.batches([chunk.real for chunk in self._chunks], self._key, iteration)
        for chunk, (images, index) in zip(self._chunks, batches, strict=True):
            loss += self._match(chunk, images, index, [rows[chunk.classes] for rows in tables])

        self.velocity.mul_(self._momentum).add_(self._gradient)
        self.images.sub_(self.velocity, alpha=self._lr)
        return loss / len(self._classes)

    def _match(self, chunk: "_Chunk", images: Tensor, index: Tensor | None, tables: list[Tensor]) -> Tensor:
        """The loss of the chunk's classes; puts its gradient into their rows of `_gradient`.

        images, index: the real images, uint8, and which of them; all without an index.
        """

        def real(rows: slice) -> Tensor:
            return augment(
                images if index is not None else images[rows],
                tables,
                chunk.real_group[rows],
                index=None if index is None else index[rows],
                mean=self._mean,
                std=self._std,
                dtype=self._dtype,
                channels_last=True,
            )

        means = real_class_means(self._network, real, chunk.real_offsets, chunk.real_group, self._slice_images)

        synthetic = self.images[chunk.synthetic].requires_grad_()
        augmented = augment(synthetic, tables, chunk.synthetic_group, dtype=self._dtype, channels_last=True)
        loss = distribution_matching_loss(self._network, means, augmented, chunk.synthetic_offsets)
        (self._gradient[chunk.synthetic],) = torch.autograd.grad(loss, synthetic)
        return loss.detach()


@dataclass(frozen=True)
class _Chunk:
    """The classes of one forward and backward pass.

    real, synthetic: which rows of the batch of real images, and of the synthetic images, are theirs. The offsets
    (int64 [classes + 1]) and groups (int64, the class of each image) count from the chunk's first row and class.
    """

    classes: slice
    real: slice
    real_offsets: Tensor
    real_group: Tensor
    synthetic: slice
    synthetic_offsets: Tensor
    synthetic_group: Tensor


def _chunks(counts: Tensor, ipc: int, size: int, device: torch.device) -> list[_Chunk]:
    """Split the classes, which have `counts` real images in the batch and `ipc` synthetic ones, by `size` classes."""
    starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    chunks = []
    for first in range(0, len(counts), size):
        last = min(first + size, len(counts))
        local = torch.arange(last - first)
        chunks.append(
            _Chunk(
                classes=slice(first, last),
                real=slice(int(starts[first]), int(starts[last])),
                real_offsets=(starts[first : last + 1] - starts[first]).to(device),
                real_group=torch.repeat_interleave(local, counts[first:last]).to(device),
                synthetic=slice(first * ipc, last * ipc),
                synthetic_offsets=(torch.arange(last - first + 1) * ipc).to(device),
                synthetic_group=local.repeat_interleave(ipc).to(device),
            )
        )
    return chunks
