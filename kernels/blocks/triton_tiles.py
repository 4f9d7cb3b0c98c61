"""Tiles of an image, as Triton code: where they lie, how they are read, written and summed.

A tile holds the pixels of its pooling windows as four tensors, the *taps* upper left, upper right, lower left and lower
right, so pooling, its gradient and all the rest is elementwise in either memory format:

- contiguous: tiles are [channels, windows]; wide loads of the upper and the lower pixel rows, each split into its even
  and odd columns;
- channels-last: tiles are [windows, channels]; four wide loads.

The functions take the image as IMAGE = (H, W, C), height, width and channels, and the tile as TILE = (LAST, WIDE,
WINDOWS, CHANNELS): whether the image is channels-last, its windows per row padded to a power of two, and the windows
and channels of a tile.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from .. import launch
from ..numerics import is_channels_last, working_dtype


@triton.jit
def spread(window, channel, LAST: tl.constexpr):
    """Shape vectors of windows and channels for a tile."""
    if LAST:
        return window[:, None], channel[None, :]
    else:
        return window[None, :], channel[:, None]


@triton.jit
def _taps(first, channel, IMAGE: tl.constexpr, TILE: tl.constexpr):
    """Return where the tile at window `first` is read and written: offsets and masks of its parts.

    Contiguous: two parts, upper and lower rows of pixels [channels, 2 · windows]. Channels-last: the four taps.
    """
    H: tl.constexpr = IMAGE[0]
    W: tl.constexpr = IMAGE[1]
    C: tl.constexpr = IMAGE[2]
    LAST: tl.constexpr = TILE[0]
    WIDE: tl.constexpr = TILE[1]
    WINDOWS: tl.constexpr = TILE[2]
    if LAST:
        window, channel = spread(first + tl.arange(0, WINDOWS), channel, LAST)
        i = window // WIDE * 2
        j = window % WIDE * 2
        offset = (i * W + j) * C + channel
        m_0 = (i < H) & (j < W) & (channel < C)
        m_1 = (i < H) & (j + 1 < W) & (channel < C)
        m_2 = (i + 1 < H) & (j < W) & (channel < C)
        m_3 = (i + 1 < H) & (j + 1 < W) & (channel < C)
        return (offset, offset + C, offset + W * C, offset + (W + 1) * C), (m_0, m_1, m_2, m_3)
    else:
        pixel = first * 2 + tl.arange(0, 2 * WINDOWS)[None, :]
        i = pixel // (2 * WIDE) * 2
        j = pixel % (2 * WIDE)
        offset = channel[:, None] * (H * W) + i * W + j
        inside = (channel < C)[:, None] & (j < W)
        return (offset, offset + W), (inside & (i < H), inside & (i + 1 < H))


@triton.jit
def load(ptr, first, channel, IMAGE: tl.constexpr, TILE: tl.constexpr, ACC: tl.constexpr):
    """Load the taps of a tile, 0 outside the image."""
    offset, mask = _taps(first, channel, IMAGE, TILE)
    if TILE[0]:
        return (
            tl.load(ptr + offset[0], mask=mask[0], other=0).to(ACC),
            tl.load(ptr + offset[1], mask=mask[1], other=0).to(ACC),
            tl.load(ptr + offset[2], mask=mask[2], other=0).to(ACC),
            tl.load(ptr + offset[3], mask=mask[3], other=0).to(ACC),
        )
    else:
        upper = tl.load(ptr + offset[0], mask=mask[0], other=0).to(ACC)
        lower = tl.load(ptr + offset[1], mask=mask[1], other=0).to(ACC)
        t_0, t_1 = tl.split(tl.reshape(upper, (TILE[3], TILE[2], 2)))
        t_2, t_3 = tl.split(tl.reshape(lower, (TILE[3], TILE[2], 2)))
        return t_0, t_1, t_2, t_3


@triton.jit
def store(ptr, taps, first, channel, IMAGE: tl.constexpr, TILE: tl.constexpr):
    """Store the taps of a tile where they lie in the image."""
    offset, mask = _taps(first, channel, IMAGE, TILE)
    element = ptr.dtype.element_ty
    if TILE[0]:
        tl.store(ptr + offset[0], taps[0].to(element), mask=mask[0])
        tl.store(ptr + offset[1], taps[1].to(element), mask=mask[1])
        tl.store(ptr + offset[2], taps[2].to(element), mask=mask[2])
        tl.store(ptr + offset[3], taps[3].to(element), mask=mask[3])
    else:
        upper = tl.reshape(tl.join(taps[0].to(element), taps[1].to(element)), (TILE[3], 2 * TILE[2]))
        lower = tl.reshape(tl.join(taps[2].to(element), taps[3].to(element)), (TILE[3], 2 * TILE[2]))
        tl.store(ptr + offset[0], upper, mask=mask[0])
        tl.store(ptr + offset[1], lower, mask=mask[1])


@triton.jit
def pooled(first, channel, IMAGE: tl.constexpr, TILE: tl.constexpr, LAST: tl.constexpr):
    """Return where the pooled pixels of a tile lie in the pooled image: offset and mask.

    LAST: whether the pooled image is channels-last, which may differ from that of the tile.
    """
    H: tl.constexpr = IMAGE[0] // 2
    W: tl.constexpr = IMAGE[1] // 2
    C: tl.constexpr = IMAGE[2]
    window, channel = spread(first + tl.arange(0, TILE[2]), channel, TILE[0])
    i = window // TILE[1]
    j = window % TILE[1]
    mask = (i < H) & (j < W) & (channel < C)
    if LAST:
        return (i * W + j) * C + channel, mask
    else:
        return channel * (H * W) + i * W + j, mask


@triton.jit
def centre(taps, mean, first, IMAGE: tl.constexpr, TILE: tl.constexpr):
    """Subtract the mean, leaving 0 outside the image."""
    H: tl.constexpr = IMAGE[0]
    W: tl.constexpr = IMAGE[1]
    WIDE: tl.constexpr = TILE[1]
    WINDOWS: tl.constexpr = TILE[2]
    d_0 = taps[0] - mean
    d_1 = taps[1] - mean
    d_2 = taps[2] - mean
    d_3 = taps[3] - mean
    # Unless no tap of any tile lies outside.
    if H % 2 != 0 or W != 2 * WIDE or (H // 2 * WIDE) % WINDOWS != 0:
        window, _ = spread(first + tl.arange(0, WINDOWS), first + tl.arange(0, WINDOWS), TILE[0])
        i = window // WIDE * 2
        j = window % WIDE * 2
        d_0 = tl.where((i < H) & (j < W), d_0, 0.0)
        d_1 = tl.where((i < H) & (j + 1 < W), d_1, 0.0)
        d_2 = tl.where((i + 1 < H) & (j < W), d_2, 0.0)
        d_3 = tl.where((i + 1 < H) & (j + 1 < W), d_3, 0.0)
    return d_0, d_1, d_2, d_3


@triton.jit
def place(IMAGE: tl.constexpr, TILE: tl.constexpr):
    """Return the image and the channels of a program, and these as a vector.

    The tiles of an image follow each other: what one reads of a pixel lies next to what the others do, and reaches them
    through the cache while it is there.
    """
    TILES: tl.constexpr = (IMAGE[2] + TILE[3] - 1) // TILE[3]
    return tl.program_id(0) // TILES, tl.program_id(0) % TILES * TILE[3] + tl.arange(0, TILE[3])


@triton.jit
def pixels(first, IMAGE: tl.constexpr, TILE: tl.constexpr, ACC: tl.constexpr):
    """Return how many pixels of the image the tile at window `first` has."""
    WIDE: tl.constexpr = TILE[1]
    WINDOWS: tl.constexpr = TILE[2]
    rows = min(IMAGE[0] - first // WIDE * 2, 2 * WINDOWS // WIDE if WINDOWS > WIDE else 2)
    columns = max(min(IMAGE[1] - first % WIDE * 2, 2 * WINDOWS if WINDOWS < WIDE else 2 * WIDE), 0)
    return tl.cast(rows * columns, ACC)


@triton.jit
def sum_taps(taps, TILE: tl.constexpr):
    """Sum the taps of a tile over its windows: one value per channel."""
    return tl.sum((taps[0] + taps[1]) + (taps[2] + taps[3]), 0 if TILE[0] else 1, keep_dims=True)


class Tile(NamedTuple):
    """The tile of a kernel, and its warps."""

    wide: int
    total: int
    windows: int
    channels: int
    warps: int

    def programs(self, x: Tensor, images: int) -> int:
        """Return the programs that `place` shares out: one for every tile of channels of so many images."""
        return images * int(triton.cdiv(x.shape[1], self.channels))

    def constants(self, x: Tensor) -> dict[str, Any]:
        """Return the arguments that every kernel takes for images x [N, C, H, W]."""
        _, c, h, w = x.shape
        return {
            "IMAGE": (h, w, c),
            "TILE": (is_channels_last(x), self.wide, self.windows, self.channels),
            "ACC": launch.accumulator(x.dtype),
            "num_warps": self.warps,
        }


_WARPS = 16
ROOM = 2**20 if launch.INTERPRETED else 4096
"""Windows · channels of a tile, of four taps each."""
_LINE = 64
"""Bytes that a channels-last tile reads of a pixel; half as many where the whole image then is one tile."""
_FORWARD = 32
_BACKWARD = 16
_CONTIGUOUS = 8
"""Windows · channels of a thread: channels-last forward and backward, and contiguous. Few threads that each read much
keep the memory busier than many (measured on an H200)."""


def choose_tile(x: Tensor, *, backward: bool = False) -> Tile:
    """Choose the tile of a kernel for images [N, C, H, W], the whole image where there is room for it."""
    _, c, h, w = x.shape
    wide = triton.next_power_of_2((w + 1) // 2)
    total = (h + 1) // 2 * wide
    whole, most = triton.next_power_of_2(total), triton.next_power_of_2(c)
    words = working_dtype(x.dtype).itemsize // 4  # registers of a value
    room = ROOM // words
    if is_channels_last(x):
        per_thread = (_BACKWARD if backward else _FORWARD) // words
        line = max(_LINE // x.element_size(), 2)
        channels = min(most, max(line, 32 * per_thread // whole))
        if whole * channels > room >= whole * line // 2:
            channels = line // 2
        windows = min(whole, room // channels)
    else:
        per_thread = _CONTIGUOUS
        channels = min(most, max(1024 // whole, 1))
        windows = whole if whole * channels <= (room if backward else 2 * room) else room // channels
    return Tile(wide, total, windows, channels, min(_WARPS, max(1, windows * channels // (32 * per_thread))))
