"""Which implementation of an op runs, and the one place through which every op is defined. Never imports triton.

An op has a schema, a fake and a checked public function in the `op.py` of a folder. Next to it stand up to three forms
that do not know of each other: functions with the name and the arguments of the op.

- `reference.py`: plain PyTorch on any device, the definition of correct.
- `native.py`: the C++ extension, on the CPU. An op NAME that it does not take with every argument has a predicate
  `takes_NAME` of the same arguments.
- `triton.py`: Triton kernels, on a GPU or interpreted.

Public functions check shapes, dtypes and devices. Values are checked inside the op, so that a compiled graph keeps the
check, and only on the CPU, where reading them costs no wait; on a GPU a row that cannot be computed becomes NaN
(images) or −1 (indices).
"""

import importlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from types import ModuleType
from typing import Any, Literal, cast

import torch
from torch import Tensor

from . import extension

Backend = Literal["auto", "triton", "reference"]
Form = Literal["reference", "native", "triton"]

_backend: ContextVar[Backend] = ContextVar("backend", default="auto")
_library = cast(Any, torch.library).Library("fastdm", "DEF")
_folders: dict[str, str] = {}
"""The package of every op."""
_checked: dict[str, Callable[..., Any]] = {}
"""Every op as PyTorch's dispatcher calls it."""


@contextmanager
def use_backend(backend: Backend) -> Iterator[None]:
    """Choose the implementation of every op within the `with` block, in this thread and for the gradients of its ops.

    "auto": Triton for CUDA tensors (and for CPU tensors under `TRITON_INTERPRET=1`) if it can be imported, else the
    C++ extension or plain PyTorch. "triton" or "reference": this one and no other.

    Raises RuntimeError if "triton" is not available here, ValueError for another name.

    >>> import torch
    >>> from fastdm.kernels import norm_relu_pool, use_backend
    >>> with use_backend("reference"):
    ...     norm_relu_pool(torch.zeros(1, 1, 2, 2))
    tensor([[[[0.]]]])
    """
    if backend not in ("auto", "triton", "reference"):
        raise ValueError(f"backend is {backend!r}; it must be 'auto', 'triton' or 'reference'")
    if backend == "triton":
        if problem := _triton_problem():
            raise RuntimeError(f"backend 'triton' is not available: {problem}")
        if not (_is_interpreted() or torch.cuda.is_available()):
            raise RuntimeError(
                "backend 'triton' is not available: there is no CUDA device; "
                "set TRITON_INTERPRET=1 before Python starts to interpret the kernels on the CPU, slowly"
            )
    before = _backend.set(backend)
    try:
        yield
    finally:
        _backend.reset(before)


def remember_backend(ctx: Any) -> None:
    """Keep the backend of an autograd function's forward pass, for `with_its_backend` in its backward pass."""
    if not torch.compiler.is_compiling():  # A compiled graph calls both passes itself.
        ctx.backend = _backend.get()


def with_its_backend(ctx: Any, op: Callable[..., Any], *args: Any) -> Any:
    """Call an op with the backend that the forward pass had.

    PyTorch runs the backward pass of GPU tensors in threads of its own, which know nothing of `use_backend`.
    """
    if torch.compiler.is_compiling():
        return op(*args)
    before = _backend.set(ctx.backend)
    try:
        return op(*args)
    finally:
        _backend.reset(before)


def define(
    name: str, schema: str, check: Callable[..., None] | None = None, *, native_checks: bool = False
) -> Callable[[Callable[..., Any]], None]:
    """Define an op and register its forms behind one dispatcher, and the decorated function as its fake.

    check: called with the op's arguments where its tensors are on the CPU. native_checks: the C++ extension makes the
    same check, which is then left to it.
    """

    def checked(*args: Any) -> Any:
        form, function = _form(name, args)
        if check is not None and not (native_checks and form == "native") and _device(args).type == "cpu":
            check(*args)
        return function(*args)

    def register(fake: Callable[..., Any]) -> None:
        _folders[name] = fake.__module__.rpartition(".")[0]
        _checked[name] = checked
        _library.define(f"{name}{schema}")
        for key in ("CPU", "CUDA"):
            _library.impl(name, checked, key)
        torch.library.register_fake(f"fastdm::{name}", fake, lib=_library)

    return register


def run(name: str, *args: Any) -> Any:
    """Run an op around PyTorch's dispatcher, which costs more than a small batch, where nothing would see the call.

    Derivatives belong to the caller.
    """
    return getattr(torch.ops.fastdm, name)(*args) if _is_seen(args) else _checked[name](*args)


def run_unchecked(name: str, *args: Any) -> Any:
    """Run an op as `run` does, without its check of values: its arguments are known to be right."""
    return getattr(torch.ops.fastdm, name)(*args) if _is_seen(args) else implementation(name, *args)(*args)


def _is_seen(args: tuple[Any, ...]) -> bool:
    """Whether a call must go through PyTorch's dispatcher: it is traced, recorded or transformed."""
    return bool(
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()  # a default device, which would be that of what the op makes
        or torch._C._autograd._profiler_enabled()
        or not all(map(_is_plain, args))
    )


def _is_plain(argument: object) -> bool:
    """Whether an argument is not a tensor with a dispatch of its own, such as one of `is_grads_batched`."""
    if not isinstance(argument, Tensor):
        return True
    return type(argument) in (Tensor, torch.nn.Parameter) and not _is_batched(argument)


_is_batched = torch._C._functorch.is_legacy_batchedtensor


def implementation(name: str, *args: Any) -> Callable[..., Any]:
    """Return the form that computes an op with these arguments."""
    return _form(name, args)[1]


def _form(name: str, args: tuple[Any, ...]) -> tuple[Form, Callable[..., Any]]:
    device = _device(args)
    if _backend.get() == "triton" and not _can_launch(device):
        raise RuntimeError(f"backend 'triton' was chosen, but the tensors are on {device}; move them to a CUDA device")
    form = first_form(name, device)
    if form == "native" and not _takes(name, args):
        form = "reference"
    function = _function(name, form)
    if function is None:
        raise NotImplementedError(f"the op {name} has no form in {form}.py")
    return form, function


def first_form(name: str, device: torch.device) -> Form:
    """Return the form of an op that a device prefers; what a native form does not take is left to the reference."""
    if _backend.get() == "triton":
        return "triton"
    if _backend.get() == "auto" and _can_launch(device):
        return "triton" if not _triton_problem() and _function(name, "triton") else "reference"
    if _backend.get() == "auto" and device.type == "cpu" and extension.load() is not None and _function(name, "native"):
        return "native"
    return "reference"


def runs_native(name: str, *args: Any) -> bool:
    """Whether the C++ extension computes an op with these arguments, of which its predicate may need only the first."""
    return first_form(name, _device(args)) == "native" and _takes(name, args)


def _takes(name: str, args: tuple[Any, ...]) -> bool:
    """Whether the native form of an op takes these arguments."""
    takes = _function(f"takes_{name}", "native")
    return takes is None or bool(takes(*args))


def _device(args: tuple[Any, ...]) -> torch.device:
    for argument in args:
        if isinstance(argument, Tensor):
            return argument.device
    raise TypeError("an op takes at least one tensor")


def _is_interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def _can_launch(device: torch.device) -> bool:
    return device.type == "cuda" or (device.type == "cpu" and _is_interpreted())


@cache
def _triton_problem() -> str:
    """Return why triton cannot be used, or an empty string."""
    try:
        importlib.import_module("triton")
    except ImportError as error:
        return f"triton cannot be imported ({error})"
    return ""


def _function(name: str, form: Form) -> Callable[..., Any] | None:
    """Return the function of this name in the form's module, or None if there is none."""
    return getattr(_module(_folders[name.removeprefix("takes_")], form), name, None)


@cache
def _module(folder: str, form: Form) -> ModuleType | None:
    """Return the module of a form, or None if the folder has no such form."""
    path = f"{folder}.{form}"
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name != path:
            raise
        return None
