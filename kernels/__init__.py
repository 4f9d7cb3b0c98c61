"""Ops of distribution matching: plain PyTorch references and fused Triton kernels (installed as ``fastdm.kernels``)."""
