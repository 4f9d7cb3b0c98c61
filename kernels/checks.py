"""Checks that several ops share: of shapes, dtypes and devices, of values, which wait for a device, and of derivatives
that an op does not have."""

import torch
from torch import Tensor
from torch.autograd import forward_ad


def check_tensor(
    name: str, tensor: Tensor, dim: int, dtype: torch.dtype | None = None, device: torch.device | None = None
) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} is a {type(tensor).__name__}; it must be a tensor")
    if tensor.dim() != dim:
        raise ValueError(f"{name} has the shape {tuple(tensor.shape)}; it must have {dim} dimensions")
    if dtype is not None and tensor.dtype != dtype:
        raise TypeError(f"{name} is {tensor.dtype}; it must be {dtype}")
    if device is not None and tensor.device != device:
        raise ValueError(f"{name} is on {tensor.device}; it must be on {device}, like the other tensors")


def check_floating_point(name: str, tensor: Tensor) -> None:
    if not tensor.dtype.is_floating_point:
        raise TypeError(f"{name} is {tensor.dtype}; it must be floating point")


def check_no_tangent(op: str, *tensors: Tensor | None) -> None:
    """Refuse forward-mode derivatives, which an op without a rule for them would silently take for 0."""
    if torch.compiler.is_compiling() or forward_ad._current_level < 0:
        return
    if any(tensor is not None and forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors):
        raise NotImplementedError(
            f"{op} has no forward-mode derivative; use reverse mode (backward, torch.autograd.grad)"
        )


def check_no_second_derivative(op: str) -> None:
    """Refuse, in a backward pass, that its result be differentiated again.

    `torch.autograd.function.once_differentiable` takes that derivative for 0 where the incoming gradient is a constant.
    """
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        raise NotImplementedError(f"{op} has no second derivative; take its gradient without create_graph")


def check_offsets(name: str, offsets: Tensor, device: torch.device) -> None:
    check_tensor(name, offsets, 1, torch.int64, device)
    if offsets.shape[0] < 2:
        raise ValueError(f"{name} has {offsets.shape[0]} entries; it must have one more than there are classes")


def check_offset_values(name: str, offsets: Tensor, rows: int) -> None:
    if int(offsets[0]) != 0 or int(offsets[-1]) != rows or bool((offsets.diff() < 0).any()):
        raise ValueError(f"{name} must rise from 0 to the number of rows, {rows}; it is {offsets.tolist()[:8]}…")


def check_index_values(name: str, index: Tensor | None, limit: int) -> None:
    if index is not None and len(index) and (int(index.min()) < 0 or int(index.max()) >= limit):
        raise ValueError(f"{name} holds {int(index.min())} to {int(index.max())}; it must stay within 0 to {limit - 1}")
