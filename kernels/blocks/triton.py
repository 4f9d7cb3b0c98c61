"""InstanceNorm, activation and 2×2 pooling in one pass, as Triton kernels on tiles of an image (`triton_tiles.py`).

The kernels are written for images of several tiles, which they read twice (statistics, result). Where an image is one
tile the loops fold at compile time and their loads merge into one; the compile check shows it. The variance is the mean
of the centred squares, never E[x²] − mean²: those of each tile about its mean, which are combined as they come (Chan,
Golub & LeVeque, 1983).
"""

import triton
import triton.language as tl
from torch import Tensor

from .. import launch
from ..numerics import LEAKY_SLOPE, is_channels_last, memory_format, pooled_shape, working_dtype
from ..row_means import bounds, class_means
from .triton_conv import conv_norm_relu_pool as conv_norm_relu_pool
from .triton_conv_backward import conv_norm_relu_pool_backward_x as conv_norm_relu_pool_backward_x
from .triton_tiles import centre, choose_tile, load, pixels, place, pooled, spread, store, sum_taps

SLOPE: tl.constexpr = tl.constexpr(LEAKY_SLOPE)


@triton.jit
def _activate(x, ACTIVATION: tl.constexpr):
    if ACTIVATION == "relu":
        return tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)  # A GPU's plain maximum of NaN and 0 is 0.
    elif ACTIVATION == "leakyrelu":
        return tl.where(x > 0, x, SLOPE * x)
    elif ACTIVATION == "sigmoid":
        return 1 / (1 + tl.exp(-x))
    else:
        return x / (1 + tl.exp(-x))


@triton.jit
def _slope(x, ACTIVATION: tl.constexpr):
    """Return the derivative of the activation."""
    if ACTIVATION == "relu":
        return tl.where(x > 0, 1.0, 0.0).to(x.dtype)
    elif ACTIVATION == "leakyrelu":
        return tl.where(x > 0, 1.0, SLOPE).to(x.dtype)
    else:
        s = 1 / (1 + tl.exp(-x))
        return s * (1 - s) if ACTIVATION == "sigmoid" else s * (1 + x * (1 - s))


@triton.jit
def _load_affine(weight_ptr, bias_ptr, channel, IMAGE: tl.constexpr, TILE: tl.constexpr, ACC: tl.constexpr):
    """Return weight and bias of a tile's channels, 1 and 0 where there is none."""
    weight = tl.full(channel.shape, 1, ACC)
    bias = tl.full(channel.shape, 0, ACC)
    if weight_ptr is not None:
        weight = tl.load(weight_ptr + channel, mask=channel < IMAGE[2], other=0).to(ACC)
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + channel, mask=channel < IMAGE[2], other=0).to(ACC)
    _, weight = spread(weight, weight, TILE[0])
    _, bias = spread(bias, bias, TILE[0])
    return weight, bias


@triton.jit
def _activated(d, factor, bias, ACTIVATION: tl.constexpr):
    """Return the activations of centred taps."""
    a_0 = _activate(d[0] * factor + bias, ACTIVATION)
    a_1 = _activate(d[1] * factor + bias, ACTIVATION)
    a_2 = _activate(d[2] * factor + bias, ACTIVATION)
    a_3 = _activate(d[3] * factor + bias, ACTIVATION)
    return a_0, a_1, a_2, a_3


@triton.jit
def _pool(a, POOL: tl.constexpr):
    if POOL == "max":
        return tl.maximum(tl.maximum(a[0], a[1]), tl.maximum(a[2], a[3]))
    else:
        return ((a[0] + a[1]) + (a[2] + a[3])) * 0.25


@triton.jit
def _products(a, b):
    return a[0] * b[0], a[1] * b[1], a[2] * b[2], a[3] * b[3]


@triton.jit
def norm_relu_pool_fwd_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    out_ptr,
    mean_ptr,
    rstd_ptr,
    eps,
    IMAGE: tl.constexpr,
    TILE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    POOL: tl.constexpr,
    ACC: tl.constexpr,
):
    H: tl.constexpr = IMAGE[0]
    W: tl.constexpr = IMAGE[1]
    C: tl.constexpr = IMAGE[2]
    WINDOWS: tl.constexpr = TILE[2]
    CHANNELS: tl.constexpr = TILE[3]
    TOTAL: tl.constexpr = (H + 1) // 2 * TILE[1]
    n, channel = place(IMAGE, TILE)
    n = n.to(tl.int64)
    x_ptr += n * (C * H * W)
    out_ptr += n * (C * H * W if POOL == "none" else C * (H // 2) * (W // 2))

    count = tl.cast(0.0, ACC)
    mean = tl.zeros((CHANNELS,), ACC)
    _, mean = spread(mean, mean, TILE[0])
    squares = mean
    for first in range(0, TOTAL, WINDOWS):
        own_count = pixels(first, IMAGE, TILE, ACC)
        x = load(x_ptr, first, channel, IMAGE, TILE, ACC)
        own_mean = sum_taps(x, TILE) / tl.maximum(own_count, 1.0)
        d = centre(x, own_mean, first, IMAGE, TILE)
        share = own_count / (count + own_count)
        squares += sum_taps(_products(d, d), TILE) + (own_mean - mean) * (own_mean - mean) * count * share
        mean += (own_mean - mean) * share
        count += own_count
    rstd = tl.rsqrt(squares / (H * W) + tl.cast(eps, ACC))
    # Loaded only now: values that live through the sums above would spill.
    weight, bias = _load_affine(weight_ptr, bias_ptr, channel, IMAGE, TILE, ACC)
    for first in range(0, TOTAL, WINDOWS):
        d = centre(load(x_ptr, first, channel, IMAGE, TILE, ACC), mean, first, IMAGE, TILE)
        a = _activated(d, rstd * weight, bias, ACTIVATION)
        if POOL == "none":
            store(out_ptr, a, first, channel, IMAGE, TILE)
        else:
            offset, mask = pooled(first, channel, IMAGE, TILE, TILE[0])
            tl.store(out_ptr + offset, _pool(a, POOL).to(out_ptr.dtype.element_ty), mask=mask)
    tl.store(mean_ptr + n * C + channel, tl.reshape(mean, (CHANNELS,)), mask=channel < C)
    tl.store(rstd_ptr + n * C + channel, tl.reshape(rstd, (CHANNELS,)), mask=channel < C)


@triton.jit
def norm_relu_pool_mean_kernel(
    x_ptr,
    offsets_ptr,
    weight_ptr,
    bias_ptr,
    out_ptr,
    n_classes,
    eps,
    IMAGE: tl.constexpr,
    TILE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    POOL: tl.constexpr,
    ACC: tl.constexpr,
):
    H: tl.constexpr = IMAGE[0]
    W: tl.constexpr = IMAGE[1]
    C: tl.constexpr = IMAGE[2]
    WINDOWS: tl.constexpr = TILE[2]
    CHANNELS: tl.constexpr = TILE[3]
    label, channel = place(IMAGE, TILE)
    label = label.to(tl.int64)
    weight, bias = _load_affine(weight_ptr, bias_ptr, channel, IMAGE, TILE, ACC)
    eps = tl.cast(eps, ACC)

    # A program adds up its share of a class's images; the shares are added afterwards, in their order.
    class_first, class_last = bounds(offsets_ptr, label)
    share = tl.cdiv(class_last - class_first, tl.num_programs(1))
    share_first = class_first + tl.program_id(1) * share
    share_last = tl.minimum(share_first + share, class_last)
    total = tl.zeros((WINDOWS, CHANNELS) if TILE[0] else (CHANNELS, WINDOWS), ACC)
    for n in range(share_first, share_last):
        x = load(x_ptr + tl.cast(n, tl.int64) * (C * H * W), 0, channel, IMAGE, TILE, ACC)
        mean = sum_taps(x, TILE) / (H * W)
        d = centre(x, mean, 0, IMAGE, TILE)
        variance = sum_taps(_products(d, d), TILE) / (H * W)
        total += _pool(_activated(d, tl.rsqrt(variance + eps) * weight, bias, ACTIVATION), POOL)
    total /= tl.maximum(class_last - class_first, 1).to(ACC)

    out_ptr += (tl.program_id(1) * tl.cast(n_classes, tl.int64) + label) * (C * (H // 2) * (W // 2))
    # Flattened in NCHW order, whatever the format of the images.
    offset, mask = pooled(0, channel, IMAGE, TILE, False)
    tl.store(out_ptr + offset, total, mask=mask)


@triton.jit
def _pool_backward(g, z, ACTIVATION: tl.constexpr, POOL: tl.constexpr):
    """Return the gradient of each tap's activation from that of the pooled pixels; z: the taps before activation."""
    if POOL == "max":
        # The first of equals wins, as in PyTorch.
        a_0 = _activate(z[0], ACTIVATION)
        a_1 = _activate(z[1], ACTIVATION)
        a_2 = _activate(z[2], ACTIVATION)
        a_3 = _activate(z[3], ACTIVATION)
        best = tl.maximum(tl.maximum(a_0, a_1), tl.maximum(a_2, a_3))
        g_0 = tl.where(a_0 == best, g, 0.0)
        g = tl.where(a_0 == best, 0.0, g)
        g_1 = tl.where(a_1 == best, g, 0.0)
        g = tl.where(a_1 == best, 0.0, g)
        g_2 = tl.where(a_2 == best, g, 0.0)
        g_3 = tl.where(a_2 == best, 0.0, g)
        return g_0, g_1, g_2, g_3
    else:
        return g * 0.25, g * 0.25, g * 0.25, g * 0.25


@triton.jit
def _grads(
    grad_ptr,
    x_ptr,
    mean,
    rstd,
    weight,
    bias,
    first,
    channel,
    IMAGE: tl.constexpr,
    TILE: tl.constexpr,
    GRAD_LAST: tl.constexpr,
    ACTIVATION: tl.constexpr,
    POOL: tl.constexpr,
    ACC: tl.constexpr,
):
    """Return the normalised taps, and the gradient before the activation there, 0 where no window reaches."""
    x = load(x_ptr, first, channel, IMAGE, TILE, ACC)
    y_0 = (x[0] - mean) * rstd
    y_1 = (x[1] - mean) * rstd
    y_2 = (x[2] - mean) * rstd
    y_3 = (x[3] - mean) * rstd
    z_0 = y_0 * weight + bias
    z_1 = y_1 * weight + bias
    z_2 = y_2 * weight + bias
    z_3 = y_3 * weight + bias
    if POOL == "none":
        g = load(grad_ptr, first, channel, IMAGE, TILE, ACC)
    else:
        offset, mask = pooled(first, channel, IMAGE, TILE, GRAD_LAST)
        g = tl.load(grad_ptr + offset, mask=mask, other=0).to(ACC)
        g = _pool_backward(g, (z_0, z_1, z_2, z_3), ACTIVATION, POOL)
    g_0 = g[0] * _slope(z_0, ACTIVATION)
    g_1 = g[1] * _slope(z_1, ACTIVATION)
    g_2 = g[2] * _slope(z_2, ACTIVATION)
    g_3 = g[3] * _slope(z_3, ACTIVATION)
    return (y_0, y_1, y_2, y_3), (g_0, g_1, g_2, g_3)


@triton.jit
def norm_relu_pool_bwd_kernel(
    grad_ptr,
    x_ptr,
    mean_ptr,
    rstd_ptr,
    weight_ptr,
    bias_ptr,
    grad_x_ptr,
    grad_weight_ptr,
    grad_bias_ptr,
    IMAGE: tl.constexpr,
    TILE: tl.constexpr,
    GRAD_LAST: tl.constexpr,
    ACTIVATION: tl.constexpr,
    POOL: tl.constexpr,
    ACC: tl.constexpr,
):
    H: tl.constexpr = IMAGE[0]
    W: tl.constexpr = IMAGE[1]
    C: tl.constexpr = IMAGE[2]
    WINDOWS: tl.constexpr = TILE[2]
    CHANNELS: tl.constexpr = TILE[3]
    TOTAL: tl.constexpr = (H + 1) // 2 * TILE[1]
    n, channel = place(IMAGE, TILE)
    n = n.to(tl.int64)
    x_ptr += n * (C * H * W)
    grad_x_ptr += n * (C * H * W)
    grad_ptr += n * (C * H * W if POOL == "none" else C * (H // 2) * (W // 2))
    weight, bias = _load_affine(weight_ptr, bias_ptr, channel, IMAGE, TILE, ACC)
    mean = tl.load(mean_ptr + n * C + channel, mask=channel < C, other=0)
    rstd = tl.load(rstd_ptr + n * C + channel, mask=channel < C, other=0)
    _, mean = spread(mean, mean, TILE[0])
    _, rstd = spread(rstd, rstd, TILE[0])

    # Outside the image the gradient is 0, so no sum needs a mask.
    grad_bias = weight * 0
    grad_weight = weight * 0
    for first in range(0, TOTAL, WINDOWS):
        y, g = _grads(
            grad_ptr, x_ptr, mean, rstd, weight, bias, first, channel, IMAGE, TILE, GRAD_LAST, ACTIVATION, POOL, ACC
        )
        grad_bias += sum_taps(g, TILE)
        grad_weight += sum_taps(_products(g, y), TILE)
    b = grad_bias / (H * W)
    a = grad_weight / (H * W)
    factor = weight * rstd
    for first in range(0, TOTAL, WINDOWS):
        y, g = _grads(
            grad_ptr, x_ptr, mean, rstd, weight, bias, first, channel, IMAGE, TILE, GRAD_LAST, ACTIVATION, POOL, ACC
        )
        dx_0 = (g[0] - b - y[0] * a) * factor
        dx_1 = (g[1] - b - y[1] * a) * factor
        dx_2 = (g[2] - b - y[2] * a) * factor
        dx_3 = (g[3] - b - y[3] * a) * factor
        store(grad_x_ptr, (dx_0, dx_1, dx_2, dx_3), first, channel, IMAGE, TILE)
    if grad_weight_ptr is not None:
        tl.store(grad_weight_ptr + n * C + channel, tl.reshape(grad_weight, (CHANNELS,)), mask=channel < C)
    if grad_bias_ptr is not None:
        tl.store(grad_bias_ptr + n * C + channel, tl.reshape(grad_bias, (CHANNELS,)), mask=channel < C)


_SHARES = 64
"""Programs among which the images of one class are divided."""


def norm_relu_pool(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, activation: str, pool: str
) -> tuple[Tensor, Tensor, Tensor]:
    n, c = x.shape[:2]
    last = is_channels_last(x)
    tile = choose_tile(x)
    out = launch.empty(pooled_shape(x.shape, pool), x.dtype, x.device, last)
    mean = launch.empty((n, c), working_dtype(x.dtype), x.device)
    rstd = launch.empty((n, c), working_dtype(x.dtype), x.device)
    launch.start(
        norm_relu_pool_fwd_kernel,
        (tile.programs(x, n),),
        x_ptr=x if last else x.contiguous(),
        weight_ptr=launch.contiguous(weight),
        bias_ptr=launch.contiguous(bias),
        out_ptr=out,
        mean_ptr=mean,
        rstd_ptr=rstd,
        eps=eps,
        ACTIVATION=activation,
        POOL=pool,
        **tile.constants(x),
    )
    return out, mean, rstd


def norm_relu_pool_backward(
    grad: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    activation: str,
    pool: str,
) -> tuple[Tensor, Tensor, Tensor]:
    n, c = x.shape[:2]
    last = is_channels_last(x)
    tile = choose_tile(x, backward=True)
    grad_x = launch.empty(x.shape, x.dtype, x.device, last)
    # Of each image, to be added up; none for what is absent.
    grad_weight, grad_bias = (
        None if each is None else launch.empty((n, c), mean.dtype, x.device) for each in (weight, bias)
    )
    if pool == "none":
        grad = grad.contiguous(memory_format=memory_format(last))
    elif not is_channels_last(grad):
        grad = grad.contiguous()
    launch.start(
        norm_relu_pool_bwd_kernel,
        (tile.programs(x, n),),
        grad_ptr=grad,
        x_ptr=x if last else x.contiguous(),
        mean_ptr=mean,
        rstd_ptr=rstd,
        weight_ptr=launch.contiguous(weight),
        bias_ptr=launch.contiguous(bias),
        grad_x_ptr=grad_x,
        grad_weight_ptr=grad_weight,
        grad_bias_ptr=grad_bias,
        GRAD_LAST=is_channels_last(grad),
        ACTIVATION=activation,
        POOL=pool,
        **tile.constants(x),
    )
    sums = [mean.new_empty(0) if each is None else each.sum(0) for each in (grad_weight, grad_bias)]
    return grad_x, sums[0], sums[1]


def norm_relu_pool_mean(
    x: Tensor,
    offsets: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str,
    pool: str,
) -> Tensor:
    tile = choose_tile(x)
    if pool == "none" or tile.total > tile.windows:
        # Not the last block of a network, whose images are small: two launches serve.
        out = norm_relu_pool(x, weight, bias, eps, activation, pool)[0]
        return class_means(out.flatten(1), offsets)
    n, c, h, w = pooled_shape(x.shape, pool)
    classes = offsets.shape[0] - 1
    shares = max(1, min(_SHARES, n // max(classes, 1) // 4))
    sums = launch.empty((shares, classes, c * h * w), working_dtype(x.dtype), x.device)
    launch.start(
        norm_relu_pool_mean_kernel,
        (tile.programs(x, classes), shares),
        x_ptr=x if is_channels_last(x) else x.contiguous(),
        offsets_ptr=offsets.contiguous(),
        weight_ptr=launch.contiguous(weight),
        bias_ptr=launch.contiguous(bias),
        out_ptr=sums,
        n_classes=classes,
        eps=eps,
        ACTIVATION=activation,
        POOL=pool,
        **tile.constants(x),
    )
    return sums.sum(0)
