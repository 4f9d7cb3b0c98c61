"""One iteration of distribution matching, over chunks of classes."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fastdm.augmentation import Strategy, augment
from fastdm.data.pool import Dataset
from fastdm.graph import captured
from fastdm.kernels import draw
from fastdm.matching import distribution_matching_loss, real_class_means
from fastdm.networks import Network, initialise
from fastdm.plan import Plan
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
        self._pool = dataset.train.images.to(device)
        self._draws = _RealDraws(dataset.train.class_offsets, settings.batch_real, device)
        self._chunks = _chunks(self._draws.counts, settings.ipc, plan.chunk_classes, device)
        self._slice_images = plan.slice_images
        self._run = self._iterate

    def __call__(self, iteration: int) -> Tensor:
        """Change the images once; returns the loss divided by the number of classes, float32, on their device."""
        self._key[1] = iteration
        return self._run()

    def capture(self) -> None:
        """Record the iteration as a CUDA graph, so that the host only starts it; RuntimeError where that fails."""
        self._run = captured(self._iterate, [self.images, self.velocity])

    def _iterate(self) -> Tensor:
        """The iteration that `_key` names."""
        initialise(self._network, self._key)
        index = self._draws(self._key)
        tables = self._strategy.draw(self._key, self._classes, (self.images.shape[2], self.images.shape[3]))

        loss = torch.zeros((), device=self.images.device)
        for chunk in self._chunks:
            loss += self._match(chunk, index[chunk.real], [rows[chunk.classes] for rows in tables])

        self.velocity.mul_(self._momentum).add_(self._gradient)
        self.images.sub_(self.velocity, alpha=self._lr)
        return loss / len(self._classes)

    def _match(self, chunk: "_Chunk", index: Tensor, tables: list[Tensor]) -> Tensor:
        """The loss of the chunk's classes; puts its gradient into their rows of `_gradient`."""
        real = augment(
            self._pool,
            tables,
            chunk.real_group,
            index=index,
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


class _RealDraws:
    """Draws the real images of all classes: `batch_real` of each, or all of a smaller class.

    counts: images per class, on the CPU.
    """

    def __init__(self, class_offsets: Tensor, batch_real: int, device: torch.device) -> None:
        self.counts = class_offsets.diff().clamp(max=batch_real)
        self._class_offsets = class_offsets.to(device)
        labels = torch.repeat_interleave(torch.arange(len(self.counts)), self.counts)
        # One call of `draw` for all classes of one count; as a rule there is one count.
        self._calls = [
            (count, classes.to(device), torch.isin(labels, classes).nonzero().squeeze(1).to(device))
            for count in self.counts.unique().tolist()
            if count > 0
            for classes in [(self.counts == count).nonzero().squeeze(1)]
        ]

    def __call__(self, key: Tensor) -> Tensor:
        """int64 [sum of counts]: rows of the pool, class-sorted."""
        if len(self._calls) == 1:
            count, classes, _ = self._calls[0]
            return draw(key, self._class_offsets, count, classes).flatten()
        index = torch.empty(int(self.counts.sum()), dtype=torch.int64, device=key.device)
        for count, classes, positions in self._calls:
            index[positions] = draw(key, self._class_offsets, count, classes).flatten()
        return index


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
