"""One iteration of distribution matching: the paper's Algorithm 1, over chunks of classes."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from fastdm.augmentation import Strategy, augment
from fastdm.condensation.plan import MemoryPlan
from fastdm.condensation.settings import Settings
from fastdm.data.batches import RealBatch, StreamedImages, real_images
from fastdm.data.pool import Dataset
from fastdm.networks.model import Network, initialise
from fastdm.objectives.class_means import ClassMeans
from fastdm.objectives.objective import Objective, Segments
from fastdm.system.cuda_graph import captured, unchanged


class Step:
    """The synthetic images, and the iteration that changes them.

    images: float32 [classes * ipc, C, H, W], normalised, class-sorted, updated in place; velocity: SGD's momentum
    buffer, same shape. Everything random is a function of (seed, iteration, class); nothing waits for the host.
    """

    def __init__(
        self,
        dataset: Dataset,
        images: Tensor,
        network: Network,
        settings: Settings,
        plan: MemoryPlan,
        dtype: torch.dtype,
    ) -> None:
        assert settings.lr_img is not None
        device = images.device
        self.images = images
        self.velocity = torch.zeros_like(images)
        self._gradient = torch.zeros_like(images)
        self._network = network
        self._objective: Objective = ClassMeans()
        self._lr = settings.lr_img
        self._momentum = settings.momentum
        self._strategy = Strategy.parse(settings.strategy, settings.aug_mode)
        self._mean = torch.tensor(dataset.mean, dtype=torch.float32, device=device)
        self._std = torch.tensor(dataset.std, dtype=torch.float32, device=device)
        self._augment = partial(augment, dtype=dtype, channels_last=True)
        self._size = (images.shape[2], images.shape[3])
        self._key = torch.tensor([settings.seed, 0], device=device)
        self._classes = torch.arange(dataset.num_classes, device=device)
        self._real = real_images(dataset.train, settings.batch_real, settings.seed, self._key)
        self._chunks = _chunks(self._real.counts, settings.ipc, plan.chunk_classes, device)
        self._micro_batch = plan.micro_batch
        self._run: Callable[[], Tensor] = self._iterate

    def __call__(self, iteration: int) -> Tensor:
        """Change the images once; returns the loss divided by the number of classes, float32, on their device."""
        self._key[1:].fill_(iteration)  # fill_: an assignment would wait for the device
        self._real.begin(iteration)
        return self._run()

    def _iterate(self) -> Tensor:
        """The iteration that the key names (Algorithm 1, lines 2 to 5)."""
        initialise(self._network, self._key)  # ψ ~ P: a network with random weights
        omega = self._strategy.draw(self._key, self._classes, self._size)  # ω_c ~ Ω, for every class
        loss = torch.zeros((), dtype=torch.float32, device=self.images.device)
        batches = self._real.batches([chunk.real.rows for chunk in self._chunks])  # B_c ~ T, for every class
        for chunk, batch in zip(self._chunks, batches, strict=True):
            tables = [table[chunk.classes] for table in omega]
            augment_real = partial(self._augment_real, tables)
            target = self._objective.real(self._network, batch, chunk.real, augment_real, self._micro_batch)

            synthetic = self.images[chunk.synthetic.rows].requires_grad_()  # S_c
            augmented = self._augment(synthetic, tables, chunk.synthetic.group)  # A(S_c, ω_c)
            chunk_loss = self._objective.loss(self._network, target, augmented, chunk.synthetic)
            (self._gradient[chunk.synthetic.rows],) = torch.autograd.grad(chunk_loss, synthetic)
            loss += chunk_loss.detach()

        self.velocity.mul_(self._momentum).add_(self._gradient)
        self.images.sub_(self.velocity, alpha=self._lr)  # S ← S − η ∇_S L
        return loss / len(self._classes)

    def _augment_real(self, tables: list[Tensor], batch: RealBatch, group: Tensor) -> Tensor:
        """A(B_c, ω_c): real images, normalised and augmented by the row of the tables that is their class's."""
        return self._augment(batch.images, tables, group, index=batch.index, mean=self._mean, std=self._std)

    @contextmanager
    def uncaptured(self) -> Iterator[None]:
        """Run op by op within the block even if a graph is recorded, so that a profiler sees the ops."""
        run, self._run = self._run, self._iterate
        try:
            yield
        finally:
            self._run = run

    def compile(self) -> float:
        """Let torch.compile fuse the network's layers; returns the seconds it took, RuntimeError where it fails.

        The blocks of InstanceNorm, ReLU and average pooling are single ops already: for them it takes 0 seconds.
        """
        if self._network.is_fused:
            return 0.0
        start = time.perf_counter()
        self._network.features.compile()
        # Every shape of chunk is compiled twice, with and without gradient, and other networks count too.
        with torch._dynamo.config.patch(recompile_limit=64), unchanged([self.images, self.velocity]):
            self(0)
        return time.perf_counter() - start

    def capture(self) -> str:
        """Record the iteration as a CUDA graph, so that the host only starts it; returns why not, or "" if it did.

        One graph holds all chunks, whatever their shapes: one launch per iteration, and no copies between chunks.
        """
        if isinstance(self._real, StreamedImages):
            return "the real images do not fit on the device and are streamed"
        try:
            self._run = captured(self._iterate, [self.images, self.velocity])
        except RuntimeError as error:
            return str(error)
        return ""

    def close(self) -> None:
        """Stop reading ahead."""
        self._real.close()


@dataclass(frozen=True)
class _Chunk:
    """The classes of one forward and backward pass, and their rows of the real and of the synthetic images."""

    classes: slice
    real: Segments
    synthetic: Segments


def _chunks(counts: Tensor, ipc: int, size: int, device: torch.device) -> list[_Chunk]:
    """Split the classes, which have `counts` real images in the batch and `ipc` synthetic ones, by `size` classes."""
    synthetic_counts = torch.full_like(counts, ipc)
    bounds = range(0, len(counts), size)
    classes = [slice(first, min(first + size, len(counts))) for first in bounds]
    return [
        _Chunk(part, _segments(counts, part, device), _segments(synthetic_counts, part, device)) for part in classes
    ]


def _segments(counts: Tensor, classes: slice, device: torch.device) -> Segments:
    """The rows of some classes in a class-sorted tensor that holds `counts` images of each class."""
    starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])[classes.start : classes.stop + 1]
    group = torch.repeat_interleave(torch.arange(len(starts) - 1), counts[classes])
    return Segments(slice(int(starts[0]), int(starts[-1])), (starts - starts[0]).to(device), group.to(device))
