"""The pictures of a report: one sheet of small images for each recorded iteration, compressed to fit into a page."""

import base64
import dataclasses
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngImageFile
from torch import Tensor

from fastdm.applications.report.reading import RunRecord
from fastdm.data.pool import Dataset
from fastdm.errors import FastDMError
from fastdm.synthetic.display import GRID_GAP
from fastdm.synthetic.initial import INIT_STEP
from fastdm.synthetic.synthetic_set import SyntheticSet

ACROSS = 10
"""Images of a class that are shown, at most."""

FRAMES = 24
"""Iterations that are shown, at most."""

PIXELS = 4_000_000
"""Pixels of one sheet, at most: fewer images of a class are shown, then smaller ones."""

SCREEN = 56
"""CSS pixels that an image is enlarged to, at least, by a whole factor."""

REAL = 4
"""Real examples of a class, at least."""

T = TypeVar("T")

_QUALITIES = (None, 90, 75, 55, 35)  # of WebP; None: lossless


@dataclass(frozen=True)
class Layout:
    """Where the images are on a sheet: `images` of each of `classes`, side by side, class after class in reading order.

    height, width: of one image on the sheet; zoom: CSS pixels per pixel; across: images in a row of the sheet.
    """

    classes: int
    images: int
    height: int
    width: int
    zoom: int
    across: int

    @classmethod
    def fit(cls, classes: int, images: int, height: int, width: int) -> "Layout":
        """The layout that shows as many of the images as `PIXELS` allow."""
        images = max(1, min(images, PIXELS // (classes * height * width)))
        shrink = min(1.0, math.sqrt(PIXELS / (classes * images * height * width)))
        height, width = max(1, int(height * shrink)), max(1, int(width * shrink))
        square = math.sqrt(classes * images * height / width)  # images in a row of a square sheet
        across = images * max(1, round(square / images))
        return cls(classes, images, height, width, max(1, -(-SCREEN // min(height, width))), across)

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the sheet in CSS pixels."""
        down = -(-self.classes * self.images // self.across)
        return self.across * self.width * self.zoom, down * self.height * self.zoom

    def positions(self, label: int) -> Iterator[tuple[int, int]]:
        """(left, top) of each image of a class in CSS pixels."""
        for number in range(label * self.images, (label + 1) * self.images):
            row, column = divmod(number, self.across)
            yield column * self.width * self.zoom, row * self.height * self.zoom

    def draw(self, pixels: Tensor) -> Image.Image:
        """The sheet of uint8 [classes, images, C, H, W]."""
        flat = pixels.flatten(0, 1)
        if flat.shape[2:] != (self.height, self.width):
            small = torch.nn.functional.interpolate(flat.float(), (self.height, self.width), mode="area")
            flat = small.round().to(torch.uint8)
        down = -(-len(flat) // self.across)
        empty = flat.new_zeros(down * self.across - len(flat), *flat.shape[1:])
        cells = torch.cat([flat, empty]).unflatten(0, (down, self.across))
        rows = cells.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)
        return Image.fromarray(rows.squeeze(2).contiguous().numpy())


@dataclass(frozen=True)
class Frames:
    """The sheets of a run: (iteration, data URL), in order; initial: whether the first is what the run started from."""

    layout: Layout
    sheets: list[tuple[int, str]]
    initial: bool = False


def synthetic_frames(record: RunRecord, dataset: Dataset | None, budget: int) -> Frames | None:
    """The synthetic images over the iterations; None if there is neither a picture nor a set.

    dataset: the one that was condensed, for the images that the run started from. budget: bytes of all sheets.
    """
    _, height, width = record.image_shape
    layout = Layout.fit(len(record.class_names), min(record.ipc, ACROSS), height, width)
    start = None if dataset is None else _initial(record, dataset, layout.images)
    final = record.synthetic
    last = record.iterations if final is not None else None
    pictures = [(number, path) for number, path in record.pictures if number != last]
    sources: list[tuple[int, Tensor | Path | SyntheticSet]] = [
        *([] if start is None else [(0, start)]),
        *pictures,
        *([] if final is None or last is None else [(last, final)]),
    ]
    if not sources:
        return None
    newest = layout.draw(_pixels(sources[-1][1], record, layout.images))
    count, quality = _compression(newest, min(FRAMES, len(sources)), budget)
    sheets = []
    for number, source in _evenly(sources, count):
        picture = newest if source is sources[-1][1] else layout.draw(_pixels(source, record, layout.images))
        sheets.append((number, data_url(picture, quality)))
    return Frames(layout, sheets, initial=start is not None and sheets[0][0] == 0)


def real_frames(dataset: Dataset, images: int, budget: int) -> Frames:
    """Random real images of every class, as many as are shown of the synthetic ones, and at least `REAL`."""
    _, height, width = dataset.image_shape
    smallest = int(dataset.train.class_sizes.min())
    layout = Layout.fit(dataset.num_classes, max(1, min(smallest, max(images, REAL))), height, width)
    index = dataset.train.draw(0, 0, layout.images)
    pixels = dataset.train.read(index.flatten()).view(*index.shape, *dataset.image_shape)
    sheet = layout.draw(pixels)
    return Frames(layout, [(0, data_url(sheet, _compression(sheet, 1, budget)[1]))])


def data_url(picture: Image.Image, quality: int | None) -> str:
    """A picture as a `data:` URL of WebP; quality None: lossless."""
    return f"data:image/webp;base64,{base64.b64encode(_webp(picture, quality)).decode()}"


def _webp(picture: Image.Image, quality: int | None) -> bytes:
    content = io.BytesIO()
    # The fastest method: slower ones make noisy pictures 3 % smaller and take three times as long.
    picture.save(content, "WEBP", lossless=quality is None, quality=80 if quality is None else quality, method=0)
    return content.getvalue()


def _compression(picture: Image.Image, count: int, budget: int) -> tuple[int, int | None]:
    """How many pictures like this one, at which quality, the budget holds: first less quality, then fewer."""
    size = 0
    for quality in _QUALITIES:
        size = len(_webp(picture, quality))
        if size * count <= budget:
            return count, quality
    return max(1, min(count, budget // size)), _QUALITIES[-1]


def _evenly(items: Sequence[T], count: int) -> list[T]:
    """`count` of the items, evenly spaced: the last and, from two on, the first are among them."""
    if count == 1:
        return [items[-1]]
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]


def _initial(record: RunRecord, dataset: Dataset, images: int) -> Tensor | None:
    """The first images of each class that a run from real images started with: uint8 [classes, images, C, H, W].

    Not of canvases, which shrink and round them.
    """
    if record.settings.get("init") != "real" or record.settings.get("partition", 1) > 1:
        return None
    if int(dataset.train.class_sizes.min()) < record.ipc:
        return None
    index = dataset.train.draw(int(record.settings["seed"]), INIT_STEP, record.ipc)[:, :images]
    return dataset.train.read(index.flatten()).view(*index.shape, *dataset.image_shape)


def _pixels(source: Tensor | Path | SyntheticSet, record: RunRecord, images: int) -> Tensor:
    """The first images of each class: uint8 [classes, images, C, H, W]."""
    if isinstance(source, Tensor):
        return source
    if isinstance(source, Path):
        return _tiles(source, record)[:, :images]
    shape = source.images.shape[1:]
    rows = source.images.view(source.num_classes, source.ipc, *shape)[:, :images].flatten(0, 1)
    return dataclasses.replace(source, images=rows).pixels().view(source.num_classes, images, *shape)


def _tiles(path: Path, record: RunRecord) -> Tensor:
    """The images in a picture that `SyntheticSet.save_grid` wrote: uint8 [classes, ipc, C, H, W]."""
    channels, height, width = record.image_shape
    classes, ipc = len(record.class_names), record.ipc
    cell = (height + GRID_GAP, width + GRID_GAP)
    expected = (ipc * cell[1] + GRID_GAP, classes * cell[0] + GRID_GAP)
    try:
        # Not Image.open: it takes the picture of a thousand classes for a decompression bomb. The size is checked here.
        with path.open("rb") as file:
            picture = PngImageFile(file)
            if picture.size != expected:
                raise FastDMError(f"{path} is {picture.size[0]}x{picture.size[1]}, not {expected[0]}x{expected[1]}")
            pixels = torch.from_numpy(np.array(picture.convert("L" if channels == 1 else "RGB")))
    except (OSError, SyntaxError) as error:
        raise FastDMError(f"{path} is not a readable picture ({error}); remove it to go without") from error
    grid = pixels.reshape(*pixels.shape[:2], channels)[GRID_GAP:, GRID_GAP:]
    cells = grid.reshape(classes, cell[0], ipc, cell[1], channels)
    return cells[:, :height, :, :width].permute(0, 2, 4, 1, 3)
