"""Ops of distribution matching, each in plain PyTorch, C++ and Triton (installed as `fastdm.kernels`)."""

from . import table
from .augmentation.op import dsa
from .blocks.op import conv_norm_relu_pool, norm_relu_pool, norm_relu_pool_mean, stores_only_pooled
from .class_means.op import class_mean_difference, class_means
from .cross_entropy.op import cross_entropy
from .dispatch import use_backend
from .random.op import draw, draw_tables, uniform, uniform_weights
from .sgd.op import sgd_step
from .snapshots.op import draw_snapshots

__all__ = [
    "class_mean_difference",
    "class_means",
    "conv_norm_relu_pool",
    "cross_entropy",
    "draw",
    "draw_snapshots",
    "draw_tables",
    "dsa",
    "norm_relu_pool",
    "norm_relu_pool_mean",
    "sgd_step",
    "stores_only_pooled",
    "table",
    "uniform",
    "uniform_weights",
    "use_backend",
]
