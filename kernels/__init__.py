"""Ops of distribution matching: plain PyTorch references and fused Triton kernels (installed as ``fastdm.kernels``)."""

from .ops import (
    class_mean_difference,
    conv_norm_relu_pool,
    draw,
    dsa,
    norm_relu_pool,
    norm_relu_pool_mean,
    uniform,
    use_backend,
)

__all__ = [
    "class_mean_difference",
    "conv_norm_relu_pool",
    "draw",
    "dsa",
    "norm_relu_pool",
    "norm_relu_pool_mean",
    "uniform",
    "use_backend",
]
