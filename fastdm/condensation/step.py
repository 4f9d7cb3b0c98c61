"""One iteration of distribution matching: the paper's Algorithm 1, over chunks of classes."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, reduce

import torch
from torch import Tensor

from fastdm.augmentation import Strategy, augment
from fastdm.condensation.plan import MemoryPlan
from fastdm.condensation.settings import Settings
from fastdm.data.batches import RealBatch, StreamedImages, real_images
from fastdm.data.pool import Dataset, Pool
from fastdm.kernels import sgd_step
from fastdm.networks.drawn import BuiltNetworks, DrawnNetworks
from fastdm.networks.model import Network
from fastdm.objectives import build_objective
from fastdm.objectives.cross_entropy import cross_entropy
from fastdm.objectives.objective import Segments
from fastdm.synthetic.partition import expand
from fastdm.system.cuda_graph import captured, unchanged


class Step:
    """The synthetic images, and the iteration that changes them.

    images: float32 [classes * ipc, C, H, W], normalised, class-sorted, updated in place: canvases, if the partition is
    above 1; velocity: SGD's momentum buffer, same shape. losses: that of the last iteration, divided by the number of
    classes, and where the cross-entropy is in use its parts, the objective's and the cross-entropy before it is
    weighted. is_whole: False where an error has ended an iteration that had changed some of the images. Everything
    random is a function of (seed, iteration, class); nothing waits for the host.

    part: the real images of some of the classes (`Pool.classes`), where other processes have the others: images and
    losses are those of these classes, still divided by the number of all.
    """

    def __init__(
        self,
        dataset: Dataset,
        images: Tensor,
        networks: DrawnNetworks,
        settings: Settings,
        plan: MemoryPlan,
        dtype: torch.dtype,
        part: Pool | None = None,
    ) -> None:
        device = images.device
        real = dataset.train if part is None else part
        self.images = images
        self.velocity = torch.zeros_like(images)
        self.losses = torch.zeros(3 if settings.ce_weight else 1, device=device)
        self._networks = networks
        self._objective = build_objective(settings.objective)
        self._ce_weight = settings.ce_weight
        self._partition = settings.partition
        self._momentum = settings.momentum
        self._strategy = Strategy.parse(settings.strategy, settings.aug_mode)
        self._mean = torch.tensor(dataset.mean, dtype=torch.float32, device=device)
        self._std = torch.tensor(dataset.std, dtype=torch.float32, device=device)
        self._lr, self._black, self._white = _units(settings, self._mean, self._std)
        if settings.init == "noise":  # real images lie between black and white
            images.clamp_(self._black, self._white)
        self._augment = partial(augment, dtype=dtype, channels_last=True)
        self._size = (images.shape[2], images.shape[3])
        # By which the losses are weighted: the objective and, where it is in use, the cross-entropy.
        weights = [1.0, settings.ce_weight] if settings.ce_weight else [1.0]
        self._loss_weights = torch.tensor(weights, device=device).unbind()
        self._key = torch.tensor([settings.seed, 0], device=device)
        self._classes = torch.arange(real.first_class, real.first_class + real.num_classes, device=device)
        self._real = real_images(real, plan.residence, settings.batch_real, settings.seed, self._key)
        most = int(dataset.train.class_sizes.clamp(max=settings.batch_real).max())
        self._chunks = _chunks(self._real.counts, real.first_class, settings, plan.chunk_classes, most, device)
        self._num_classes = dataset.num_classes
        self._micro_batch = plan.micro_batch
        self.is_whole = True
        self._replay: Callable[[], Tensor] | None = None  # in place of _iterate, once it is recorded

    def __call__(self, iteration: int) -> Tensor:
        """Change the images once; returns the loss divided by the number of classes, float32, on their device."""
        self._key[1:].fill_(iteration)  # fill_: an assignment would wait for the device
        self._real.begin(iteration)
        self.losses = self._iterate() if self._replay is None else self._replay()
        return self.losses[0]

    def _iterate(self) -> Tensor:
        """Lines 2 to 5 of Algorithm 1, for the seed and the iteration that the key names, a chunk of classes at a time.

        S: the synthetic images; B: the batch of real ones; ψ: the network up to its features; A: the augmentation.
        """
        self._networks.draw(self._key)  # ϑ ~ P_ϑ: ψ gets random weights, or those of a trained network
        network = self._networks.network
        omega = self._strategy.draw(self._key, self._classes, self._size)  # ω_c ~ Ω, for every class c
        batches = self._real.batches([chunk.real.rows for chunk in self._chunks])  # B_c ~ T
        losses: list[list[Tensor]] = []
        for chunk, batch in zip(self._chunks, batches, strict=True):
            tables = [table[chunk.classes] for table in omega]
            augment_real = partial(self._augment_real, tables)  # A(B_c, ω_c)
            target = self._objective.real(network, batch, chunk.real, augment_real, self._micro_batch)  # no gradient

            images = self.images[chunk.images].requires_grad_()
            augmented = self._augment(expand(images, self._partition), tables, chunk.synthetic.group)  # A(S_c, ω_c)
            features = network.embed(augmented)  # ψ(A(S_c, ω_c))
            parts = [self._objective.loss(target, features, chunk.real, chunk.synthetic)]  # L, the sum over c
            if self._ce_weight:
                parts.append(self._cross_entropy(augmented, features, chunk))
            gradient = self._gradient(parts, images)  # ∇_S L
            self.is_whole = False
            self._update(chunk.images, gradient)  # S ← S − η ∇_S L
            losses.append([part.detach() for part in parts])
        self.is_whole = True
        return self._mean_losses(losses)

    def _gradient(self, parts: list[Tensor], images: Tensor) -> Tensor:
        """That of the objective and, where it is in use, the weighted cross-entropy."""
        weights = [weight.to(part) for weight, part in zip(self._loss_weights, parts, strict=True)]
        (gradient,) = torch.autograd.grad(parts, images, weights)
        return gradient

    def _mean_losses(self, losses: list[list[Tensor]]) -> Tensor:
        """`losses` out of the parts of every chunk."""
        sums = torch.stack([reduce(torch.add, part) for part in zip(*losses, strict=True)])
        if not self._ce_weight:
            return sums / self._num_classes
        means = sums.new_empty(3)
        torch.div(sums, self._num_classes, out=means[1:])
        torch.add(means[1], self._ce_weight * means[2], out=means[0])
        return means

    def _update(self, images: slice, gradient: Tensor) -> None:
        """One step of SGD with momentum on some of the images, on which the losses of the others do not depend."""
        sgd_step(
            self.images[images],
            self.velocity[images],
            gradient,
            self._lr,
            self._black,
            self._white,
            momentum=self._momentum,
        )

    def _cross_entropy(self, augmented: Tensor, features: Tensor, chunk: "_Chunk") -> Tensor:
        """Σ_c mean_j CE(x_cj, c) in the expert; features: those of the network that is matched in.

        On a CPU the classifier takes one class after the other: a product of matrices is rounded by how many rows it
        has, and so by how many classes the chunk has.
        """
        network, expert = self._networks.network, self._networks.expert
        shared = features if expert is network else expert.embed(augmented)
        if shared.is_cuda:
            logits = expert.classifier(shared)
        else:
            logits = torch.cat([*map(expert.classifier, shared.split(chunk.synthetic.most))])
        return cross_entropy(logits, chunk.labels, chunk.synthetic)

    def _augment_real(self, tables: list[Tensor], batch: RealBatch, group: Tensor) -> Tensor:
        """A(B_c, ω_c): real images, normalised and augmented by the row of the tables that is their class's."""
        return self._augment(batch.images, tables, group, index=batch.index, mean=self._mean, std=self._std)

    def parts(self) -> dict[str, Tensor]:
        """What the last loss consists of, by name, if of more than the objective: scalars on the device."""
        return {"matching": self.losses[1], "cross_entropy": self.losses[2]} if self._ce_weight else {}

    @property
    def network(self) -> Network:
        """What images are matched in."""
        return self._networks.network

    @property
    def waited(self) -> float:
        """Seconds that all iterations so far have waited for real images to be read."""
        return self._real.waited

    def compile(self) -> float:
        """Let torch.compile fuse the network's layers; returns the seconds it took, RuntimeError where it fails.

        The blocks of InstanceNorm, ReLU and average pooling are single ops already: for them it takes 0 seconds.
        """
        if self._networks.network.is_fused:
            return 0.0
        start = time.perf_counter()
        self._networks.network.features.compile()
        self._networks.expert.features.compile()
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
        if isinstance(self._networks, BuiltNetworks):
            return "the network is built anew on the host in every iteration"
        try:
            self._replay = captured(self._iterate, [self.images, self.velocity])
        except RuntimeError as error:
            return str(error)
        return ""

    def release(self) -> bool:
        """Run op by op from now on, and give back the memory of the graph; returns whether there was one."""
        recorded, self._replay = self._replay is not None, None
        return recorded

    def close(self) -> None:
        """Stop reading ahead."""
        self._real.close()


@dataclass(frozen=True)
class _Chunk:
    """The classes of one forward and backward pass, and their rows of the real and of the synthetic images.

    images: rows of the synthetic images or, with a partition, of the canvases that they are decoded from; labels:
    int64, the class of each decoded one.
    """

    classes: slice
    real: Segments
    synthetic: Segments
    images: slice
    labels: Tensor


def _chunks(
    counts: Tensor, first_class: int, settings: Settings, size: int, most: int, device: torch.device
) -> list[_Chunk]:
    """Split the classes, which have `counts` real images in the batch, by `size` classes; most: the largest count."""
    per_class = settings.ipc * settings.partition**2
    decoded = torch.full_like(counts, per_class)
    chunks = []
    for first in range(0, len(counts), size):
        classes = slice(first, min(first + size, len(counts)))
        real = _segments(counts, classes, most, device)
        synthetic = _segments(decoded, classes, per_class, device)
        images = slice(settings.ipc * classes.start, settings.ipc * classes.stop)
        labels = synthetic.group + first_class + classes.start
        chunks.append(_Chunk(classes, real, synthetic, images, labels))
    return chunks


def _units(settings: Settings, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The learning rate of normalised pixels, and black and white, which they are kept between: float32 [C, 1, 1].

    x / 255 = std · pixel + mean: a gradient in [0, 1] is 1 / std times as large, and a step 1 / std times as long.
    """
    mean, std = mean[:, None, None], std[:, None, None]
    assert settings.lr_img is not None
    if settings.clamp:
        return settings.lr_img / std**2, (0 - mean) / std, (1 - mean) / std
    infinity = torch.full_like(std, torch.inf)
    return torch.full_like(std, settings.lr_img), -infinity, infinity


def _segments(counts: Tensor, classes: slice, most: int, device: torch.device) -> Segments:
    """The rows of some classes in a class-sorted tensor that holds `counts` images of each class."""
    starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])[classes.start : classes.stop + 1]
    group = torch.repeat_interleave(torch.arange(len(starts) - 1), counts[classes])
    rows = slice(int(starts[0]), int(starts[-1]))
    return Segments(rows, (starts - starts[0]).to(device), group.to(device), tuple(counts[classes].tolist()), most)
