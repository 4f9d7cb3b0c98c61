"""A picture of a synthetic set for people: landscape, enlarged, with the class names next to the images."""

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

ACROSS = 10
"""Images of a class in one row of the picture; the others follow in rows below."""

MOST = 40
"""Images of a class in the picture; if there are more, its caption says so."""

SIDE = 64
"""Screen pixels that an image is enlarged to, at least."""

PIXELS = 40_000_000
"""Size of the picture beyond which images are not enlarged."""

LARGEST = 100_000_000
"""Pixels of all images beyond which fewer of every class are shown: the picture is made in memory."""

_GAP, _PAD, _ASPECT = 2, 12, 1.6
_BACKGROUND, _TEXT = 255, 40


def picture(pixels: Tensor, class_names: Sequence[str], ipc: int) -> Image.Image:
    """The first images of every class, class by class in columns, so that the whole is wider than high.

    pixels: uint8 [classes * ipc, C, H, W], class-sorted, C 1 or 3.
    """
    height, width = pixels.shape[2:]
    shown = min(ipc, MOST, max(1, LARGEST // (len(class_names) * height * width)))
    across, down = min(shown, ACROSS), -(-shown // ACROSS)
    zoom = max(1, -(-SIDE // min(height, width)))
    if len(class_names) * shown * height * width * zoom * zoom > PIXELS:
        zoom = 1
    cell = (height * zoom + _GAP, width * zoom + _GAP)
    font = ImageFont.load_default(max(12, min(20, cell[0] // 3)))
    names = [_shortened(name) for name in class_names]
    label = math.ceil(max(font.getlength(name) for name in names)) + _PAD
    between = _GAP if down == 1 else _PAD // 2  # classes of several rows stand apart
    block = (down * cell[0] + between, label + across * cell[1] + _PAD)
    columns = _columns(len(names), block)
    rows = -(-len(names) // columns)

    caption = f"the first {shown} of {ipc} images of each class" if shown < ipc else ""
    top = _PAD // 2 + (2 * int(font.getbbox("Mg")[3]) if caption else 0)
    size = (columns * block[1] + _PAD, rows * block[0] + top)
    sheet = Image.new("L" if pixels.shape[1] == 1 else "RGB", size, _BACKGROUND if pixels.shape[1] == 1 else "white")
    draw = ImageDraw.Draw(sheet)
    ink = _TEXT if pixels.shape[1] == 1 else (_TEXT, _TEXT, _TEXT)
    draw.text((_PAD, 8), caption, ink, font)
    for number, name in enumerate(names):
        x, y = _PAD + number // rows * block[1], top + number % rows * block[0]
        draw.text((x + label - _PAD // 2, y + cell[0] // 2), name, ink, font, anchor="rm")
        for j in range(shown):
            image = _enlarged(pixels[number * ipc + j], zoom)
            sheet.paste(image, (x + label + j % ACROSS * cell[1], y + j // ACROSS * cell[0]))
    return sheet


def _columns(classes: int, block: tuple[int, int]) -> int:
    """How many columns of blocks (height, width) come nearest to the aspect of a screen, with few places left empty."""

    def badness(columns: int) -> float:
        rows = -(-classes // columns)
        aspect = columns * block[1] / (rows * block[0])
        return abs(math.log(aspect / _ASPECT)) + 2 * (1 - classes / (columns * rows))

    return min(range(1, classes + 1), key=badness)


def _shortened(name: str, most: int = 18) -> str:
    name = "".join(letter if letter.isprintable() else "?" for letter in name)
    return name if len(name) <= most else name[: most - 1] + "…"


def _enlarged(pixels: Tensor, zoom: int) -> Image.Image:
    """Every pixel of uint8 [C, H, W] as a square of `zoom`."""
    large = pixels.repeat_interleave(zoom, 1).repeat_interleave(zoom, 2).movedim(0, -1).squeeze(-1)
    return Image.fromarray(large.contiguous().numpy())
