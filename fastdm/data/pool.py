"""The pool: every image of one split as uint8, sorted by class."""

from collections.abc import Generator, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from fastdm.data.normalisation import per_channel
from fastdm.data.prefetch import Batch, prefetch
from fastdm.errors import FastDMError
from fastdm.kernels import draw
from fastdm.kernels.extension import call
from fastdm.system.checks import check_normalisation
from fastdm.system.device import indexed_device
from fastdm.system.native import native

Layout = Literal["planar", "last", "rgbx"]


class Backing(Protocol):
    """A file that stands behind a pool's images."""

    @property
    def images(self) -> Tensor:
        """The images, mapped: uint8 [N, C, H, W]."""

    def ready(self) -> bool:
        """Prepare to be read; whether `images` are then gathered from as they are, without `gather`."""

    def gather(self, index: Tensor, out: Tensor) -> None:
        """Read the images of the index into out, uint8 [n, C, H, W] in memory. The index is in range."""

    def part(self, rows: slice) -> "Backing":
        """The same file for some of these images only: its index counts from their first."""


@dataclass(frozen=True, eq=False)
class Pool:
    """Class-sorted uint8 images.

    images: uint8 [N, C, H, W]; the images of class c are `images[class_offsets[c]:class_offsets[c + 1]]`.
    class_offsets: int64 [classes + 1], on the CPU, rising from 0 to N.
    backing: the file that `images` is a mapping of. `gather` and `stream` read it the right way; touching
        `images` itself leaves that to the kernel.
    first_class: number of its first class in the whole data set, 0 unless it is a part of one (see `classes`): draws
        are keyed by that number.
    """

    images: Tensor
    class_offsets: Tensor
    backing: Backing | None = None
    first_class: int = 0

    def __reduce__(self) -> tuple[Any, ...]:
        """A pickle or a copy of images in a file names the file, which is opened again where it is unpickled."""
        if self.backing is None:
            return Pool, (self.images, self.class_offsets, None, self.first_class)
        return _backed, (self.backing, self.class_offsets, self.first_class)

    @property
    def num_classes(self) -> int:
        return len(self.class_offsets) - 1

    @property
    def class_sizes(self) -> Tensor:
        """int64 [classes]: number of images of each class."""
        return self.class_offsets.diff()

    @property
    def labels(self) -> Tensor:
        """int64 [N]: the class of each image."""
        return torch.repeat_interleave(torch.arange(self.num_classes, device="cpu"), self.class_sizes)

    def __len__(self) -> int:
        return len(self.images)

    def classes(self, first: int, stop: int) -> "Pool":
        """The classes `first` to `stop` - 1 as a pool of their own, such as a process owns that shares the work.

        Nothing is copied: it is a view of the same memory or the same file, of which only the images of these classes
        are read or mapped. What is drawn of a class is the same as in the whole pool.

        >>> import fastdm
        >>> pool = fastdm.open_dataset("digits").train
        >>> part = pool.classes(3, 5)
        >>> part.num_classes, len(part) == int(pool.class_sizes[3:5].sum()), part.first_class
        (2, True, 3)
        """
        if not 0 <= first < stop <= self.num_classes:
            raise FastDMError(f"classes {first} to {stop} are not a part of {self.num_classes} classes")
        offsets = self.class_offsets[first : stop + 1]
        rows = slice(int(offsets[0]), int(offsets[-1]))
        backing = None if self.backing is None else self.backing.part(rows)
        return Pool(self.images[rows], offsets - offsets[0], backing, self.first_class + first)

    @property
    def numbered_offsets(self) -> Tensor:
        """`class_offsets` by the numbers of the whole data set, whose classes before this part are empty here.

        With it `fastdm.kernels.draw`, which is keyed by the number of a class, draws the same as from the whole set.
        """
        if self.first_class == 0:
            return self.class_offsets
        return torch.cat([self.class_offsets.new_zeros(self.first_class), self.class_offsets])

    def draw(self, seed: int, step: int, n: int, classes: Tensor | None = None, *, replace: bool = False) -> Tensor:
        """n distinct images of each class, uniform over all subsets of n: int64 [classes, n], ascending in each row.

        Keyed by (seed, step, class) alone: the same on every platform, whatever other classes are drawn with it, and
        the same as `fastdm.kernels.draw` gives on a device. classes: int64 [k], by default all.
        replace: draw every image from the whole class, so that images may repeat.
        Raises FastDMError if a class has fewer than n images, or with `replace` none.
        """
        if classes is None:
            classes = torch.arange(self.num_classes, device="cpu")
        if self.first_class:
            classes = classes + self.first_class
        offsets = self.numbered_offsets
        try:
            if native() is not None and n >= 0:
                # The op takes a key and looks at its arguments for longer than the core draws. It says what is wrong
                # with those that the core does not take.
                with suppress(TypeError):
                    drawn = torch.empty(len(classes), n, dtype=torch.int64, device="cpu")
                    call("draw", seed, step & 0xFFFFFFFF, offsets, classes, drawn, replace)
                    return drawn
            return draw(torch.tensor([seed, step], device="cpu"), offsets, n, classes, replace=replace)
        except ValueError as error:
            raise FastDMError(str(error)) from error

    def gather(
        self,
        index: Tensor,
        *,
        dtype: torch.dtype = torch.uint8,
        layout: Layout = "planar",
        mean: Sequence[float] = (),
        std: Sequence[float] = (),
        out: Tensor | None = None,
    ) -> Tensor:
        """The images of a CPU index, int64 of any shape: [*index.shape, C, H, W].

        dtype: uint8 as stored; float32 or bfloat16 normalised, (x / 255 - mean) / std, computed as
            x · (1 / (255 · std)) + (-mean / std) in float32, each operation rounded once.
        layout: "planar" [C, H, W], "last" [H, W, C] or, of images with 3 channels, "rgbx" [H, W, 4] with x = 0.
        out: a contiguous CPU tensor (pinned, if it is copied to a GPU later) that is filled and returned.
        Images on a device are gathered there with `images[index]` instead.
        """
        if self.images.device.type != "cpu":
            raise FastDMError(f"the images are on {self.images.device}: index them there")
        if dtype not in (torch.uint8, torch.float32, torch.bfloat16):
            raise FastDMError(f"images cannot be gathered as {dtype}; uint8, float32 and bfloat16 are possible")
        scale, shift = ([], []) if dtype == torch.uint8 else self._scale_and_shift(mean, std)
        if index.dtype != torch.int64 or index.device.type != "cpu":
            raise FastDMError(f"the index is {index.dtype} on {index.device}; it must be int64 on the CPU")
        flat = index.reshape(-1).contiguous()
        shape = (*index.shape, *_image_shape(self.images, layout))
        if out is None:
            out = torch.empty(shape, dtype=dtype, device="cpu")
        elif out.shape != shape or out.dtype != dtype or not out.is_contiguous() or out.device.type != "cpu":
            raise FastDMError(
                f"out is {out.dtype} {list(out.shape)} on {out.device}; it must be a contiguous {dtype} "
                f"{list(shape)} on the CPU"
            )
        if flat.numel() and not 0 <= int(flat.min()) <= int(flat.max()) < len(self):
            raise FastDMError(f"the index reaches from {flat.min()} to {flat.max()}; there are {len(self)} images")
        if self.images.dtype != torch.uint8 or not self.images.is_contiguous():
            raise FastDMError("the images of a pool must be uint8, one after the other in memory")
        into = out.view(-1, *shape[index.ndim :])
        if self.backing is None or self.backing.ready():
            _gather(self.images, flat, into, layout, scale, shift)
        elif dtype == torch.uint8 and layout == "planar":
            self.backing.gather(flat, into)
        else:
            read = torch.empty(len(flat), *self.images.shape[1:], dtype=torch.uint8, device="cpu")
            self.backing.gather(flat, read)
            _gather(read, torch.arange(len(flat), device="cpu"), into, layout, scale, shift)
        return out

    def _scale_and_shift(self, mean: Sequence[float], std: Sequence[float]) -> tuple[list[float], list[float]]:
        """What normalised pixels are x times and plus."""
        try:
            mean, std = check_normalisation(mean, std, self.images.shape[1])
        except ValueError as error:
            raise FastDMError(str(error)) from error
        return [1 / (255 * s) for s in std], [-m / s for m, s in zip(mean, std, strict=True)]

    def read(self, index: Tensor) -> Tensor:
        """The images of a CPU index, int64 [n]: uint8 [n, C, H, W] on the CPU, wherever the pool is."""
        device = self.images.device
        return self.gather(index) if device.type == "cpu" else self.images[index.to(device)].cpu()

    def stream(
        self,
        indices: Iterable[Tensor],
        chunk_bytes: int | None = 64 << 20,
        depth: int = 3,
        device: torch.device | str = "cpu",
    ) -> Generator[Batch, None, None]:
        """Gather the images of `indices`, such as `draw` gives, ahead of their use.

        chunk_bytes: the most that a batch holds, though at least one row of an index; None: never cut an index.
        The rest as in `fastdm.data.prefetch.prefetch`.
        """

        def gather(index: Tensor, out: Tensor) -> None:
            self.gather(index, out=out)

        shape = tuple(self.images.shape[1:])
        return prefetch(gather, shape, indices, depth=depth, device=indexed_device(device), most_bytes=chunk_bytes)

    def to(self, device: torch.device | str) -> "Pool":
        """The pool with its images on the device (itself if they are there already)."""
        device = indexed_device(device)
        if self.images.device == device:
            return self
        images = torch.empty(self.images.shape, dtype=torch.uint8, device=device)
        for start in range(0, len(self), 4096):
            rows = slice(start, start + 4096)
            index = torch.arange(start, min(start + 4096, len(self)), device="cpu")
            images[rows] = self.images[rows] if self.backing is None else self.gather(index)
        return Pool(images, self.class_offsets, first_class=self.first_class)


def _backed(backing: Backing, class_offsets: Tensor, first_class: int) -> Pool:
    return Pool(backing.images, class_offsets, backing, first_class)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set as fastdm uses it: class-sorted pools and what is needed to normalise them.

    A normalised pixel is (x / 255 - mean) / std, per channel.
    """

    name: str
    train: Pool
    test: Pool | None
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def num_classes(self) -> int:
        return self.train.num_classes

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width


def _image_shape(images: Tensor, layout: Layout) -> tuple[int, ...]:
    channels, height, width = images.shape[1:]
    if layout == "planar":
        return channels, height, width
    return height, width, 4 if layout == "rgbx" else channels


def gather_images(images: Tensor, index: Tensor, out: Tensor) -> None:
    """out = images[index]: uint8 [n, C, H, W] in memory."""
    _gather(images, index, out, "planar", [], [])


def _gather(
    images: Tensor, index: Tensor, out: Tensor, layout: Layout, scale: Sequence[float], shift: Sequence[float]
) -> None:
    if native() is not None:
        try:
            call("gather", images, index, out, layout, scale, shift)
        except ValueError as error:
            raise FastDMError(str(error)) from error
        return
    if out.dtype == torch.uint8 and layout == "planar":
        torch.index_select(images, 0, index, out=out)
        return
    picked = images[index]
    if out.dtype != torch.uint8:
        picked = picked.float().mul_(per_channel(scale)).add_(per_channel(shift)).to(out.dtype)
    if layout != "planar":
        picked = picked.movedim(1, -1)
    if layout == "rgbx":
        out[..., 3] = 0
    out[..., : picked.shape[-1]] = picked
