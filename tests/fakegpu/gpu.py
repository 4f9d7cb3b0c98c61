"""The Python half of the fake GPU: what stands for cuDNN, cuBLAS and Triton's driver, and the log of the C half.

`install()` before the first kernel; then `with recorded() as log: …` gives the `Line`s of what happened within.
"""

import ctypes
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor

MOST_ELEMENTS = 2**31 - 1

_c = ctypes.CDLL(None)
_keep: list[Any] = []  # registrations of ops, which end with their library


class Line(NamedTuple):
    """kind: KERNEL, COPY, FILL, GRAPH (work on a stream), RECORDED (a graph), WAIT (of the host), ILLEGAL (breaks a
    capture, or no GPU takes it) or LARGE (2^31 elements and more); thread: 0 is the main one."""

    kind: str
    what: str
    where: str
    thread: int


WORK = ("KERNEL", "COPY", "FILL", "GRAPH")


@contextmanager
def recorded() -> Iterator[list[Line]]:
    """A list that holds, after the block, what happened within it."""
    found: list[Line] = []
    _c.fake_clear()
    try:
        yield found
    finally:
        for number in range(_c.fake_line_count()):
            kind, what, where, thread = _c.fake_line(number).decode().split("\t")
            found.append(Line(kind, what, where, int(thread)))


def install() -> None:
    """Take the place of cuDNN, cuBLAS and Triton's driver."""
    if not hasattr(_c, "fake_launch"):
        raise RuntimeError("the fake CUDA libraries are not loaded: run `make fake-gpu`")
    _c.fake_line.restype = ctypes.c_char_p
    _c.fake_line.argtypes = [ctypes.c_long]
    _c.fake_line_count.restype = ctypes.c_long
    _c.fake_launch.argtypes = [ctypes.c_char_p, *[ctypes.c_uint] * 3, ctypes.c_void_p]
    _replace_libraries()
    _replace_triton()
    torch.cuda.init()


def launch(name: str, grid: Sequence[int] = (1, 1, 1), stream: int | None = None) -> None:
    stream = torch.cuda.current_stream().cuda_stream if stream is None else stream
    if _c.fake_launch(name.encode(), *grid, stream):
        raise RuntimeError(f"invalid grid {tuple(grid)} of {name}")


# --- cuDNN and cuBLAS: allocations of their results, and a kernel each -----------------------------------------------


def _is_channels_last(*tensors: Tensor) -> bool:
    form = torch.channels_last
    return any(t.dim() == 4 and t.is_contiguous(memory_format=form) and not t.is_contiguous() for t in tensors)


def _result(name: str, like: Tensor, *inputs: Tensor) -> Tensor:
    """`like`, the result of a library's kernel of this name."""
    if max(tensor.numel() for tensor in (like, *inputs)) > MOST_ELEMENTS:
        launch(f"LARGE {name}")
    with torch.cuda.device(like.device):
        launch(name)
    return like


def _convolution(x: Tensor, weight: Tensor, bias: Tensor | None, stride, padding, dilation, *_: Any) -> Tensor:  # type: ignore[no-untyped-def]
    sizes = zip(x.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
    shape = [(size + 2 * p - d * (kernel - 1) - 1) // s + 1 for size, kernel, s, p, d in sizes]
    form = torch.channels_last if _is_channels_last(x, weight) else torch.contiguous_format
    out = torch.empty((len(x), len(weight), *shape), dtype=x.dtype, device=x.device, memory_format=form)
    out = _result("cudnn convolution", out, x)
    return out if bias is None else _result("cudnn bias", out)


def _convolution_backward(grad: Tensor, x: Tensor, weight: Tensor, bias_sizes: Any, *rest: Any) -> tuple[Any, ...]:
    needs_x, needs_weight, needs_bias = rest[-1]
    return (
        _result("cudnn gradient to the input", torch.empty_like(x), grad) if needs_x else None,
        _result("cudnn gradient to the weight", torch.empty_like(weight), grad, x) if needs_weight else None,
        _result("cudnn gradient to the bias", grad.new_empty(grad.shape[1])) if needs_bias else None,
    )


def _product(shape: Callable[[Tensor, Tensor], tuple[int, ...]]) -> Callable[..., Tensor]:
    def product(*arguments: Any, **_: Any) -> Tensor:
        a, b = [argument for argument in arguments if isinstance(argument, Tensor)][-2:]
        return _result("cublas product", a.new_empty(shape(a, b)), a, b)

    return product


def _replace_libraries() -> None:
    library = torch.library.Library("aten", "IMPL")
    _keep.append(library)
    matrix = _product(lambda a, b: (a.shape[0], b.shape[1]))
    batch = _product(lambda a, b: (*a.shape[:2], b.shape[2]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they override
        for name, function in (
            ("convolution", _convolution),
            ("convolution_backward", _convolution_backward),
            ("mm", matrix),
            ("addmm", matrix),
            ("bmm", batch),
            ("baddbmm", batch),
        ):
            library.impl(name, function, "CUDA")
        library.impl("mm.out", lambda a, b, *, out: _result("cublas product", out, a, b), "CUDA")


# --- Triton: its own specialisation and launch; nothing is compiled --------------------------------------------------


class _Launcher:
    def __init__(self, src: Any, metadata: Any) -> None:
        self._name = metadata.name

    def __call__(self, x: int, y: int, z: int, stream: int, *_: Any) -> None:
        launch(f"triton {self._name}", (x, y, z), stream or 0)


class _Utils:
    @staticmethod
    def load_binary(*_: Any) -> tuple[int, ...]:
        return 1, 2, 32, 0, 1024  # module, function, registers, spills, most threads

    @staticmethod
    def get_device_properties(device: int) -> dict[str, int]:
        unknown = dict.fromkeys(("sm_clock_rate", "mem_clock_rate", "mem_bus_width"), 1)
        shared = {"max_shared_mem": 232448, "multiprocessor_count": 132, "warpSize": 32, "max_num_regs": 65536}
        return unknown | shared

    @staticmethod
    def unload_module(module: Any) -> None: ...


class _Driver:
    launcher_cls, utils = _Launcher, _Utils()
    get_current_device = staticmethod(torch.cuda.current_device)
    set_current_device = staticmethod(torch.cuda.set_device)

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)

    def get_current_stream(self, device: int) -> int:
        return int(torch.cuda.current_stream(device).cuda_stream)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cuda", torch.cuda.current_device())

    def get_device_interface(self) -> Any:
        return torch.cuda

    @staticmethod
    def is_active() -> bool:
        return True


class _Kernel:
    """What stands for a kernel that was compiled."""

    def __init__(self, src: Any) -> None:
        if torch.cuda.is_current_stream_capturing():
            launch(f"ILLEGAL first use of {src.fn.__name__} during a capture")
        self.name, self.src, self.kernel, self.function, self.packed_metadata = src.fn.__name__, src, b"", 1, ()
        self.metadata = SimpleNamespace(name=self.name, num_warps=4, shared=0)
        self.run = _Launcher(src, self.metadata)

    def launch_metadata(self, *_: Any) -> None: ...

    def result(self) -> "_Kernel":
        return self


def _replace_triton() -> None:
    import triton.compiler
    from triton.runtime.driver import driver

    driver.set_active(_Driver())
    triton.compiler.compile = lambda src, target=None, options=None, **_: _Kernel(src)
