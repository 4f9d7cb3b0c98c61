"""Which implementation runs, and what happens where Triton is missing."""

import os
import subprocess
import sys
import textwrap
import threading
from typing import Any

import pytest
import torch
from torch import Tensor

from fastdm.kernels import class_mean_difference, dispatch, extension, stores_only_pooled, uniform, use_backend
from fastdm.kernels.class_means import reference as class_means
from fastdm.kernels.random import reference


def run(program: str, **environment: str) -> str:
    """Run a program in a fresh process."""
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    process = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], env=kept | environment, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


def test_ops_run_where_triton_cannot_be_imported() -> None:
    output = run("""
        import sys
        sys.modules["triton"] = None
        import torch
        import fastdm
        from fastdm.kernels import class_mean_difference, draw, dsa, norm_relu_pool, norm_relu_pool_mean, table
        from fastdm.kernels import uniform, use_backend
        key, offsets = torch.tensor([1, 2]), torch.tensor([0, 4, 8])
        images = torch.randn(8, 3, 8, 8, requires_grad=True)
        for backend in ("auto", "reference"):
            with use_backend(backend):
                out = norm_relu_pool(dsa(images, table.identity(1)))
                norm_relu_pool_mean(out.detach(), offsets)
                class_mean_difference(torch.zeros(8, 48), out.flatten(1), offsets, offsets.clone()).backward()
                assert images.grad.isfinite().all()
                draw(key, offsets, 2), uniform(key, offsets, 3, 0)
        try:
            with use_backend("triton"):
                raise SystemExit("the backend was granted")
        except RuntimeError as error:
            print(error)
    """)
    assert "backend 'triton' is not available: triton cannot be imported" in output


def test_importing_the_ops_does_not_import_triton() -> None:
    # torch itself may import triton: count what the package adds.
    run("""
        import sys, torch
        before = {name for name in sys.modules if name.split(".")[0] == "triton"}
        import fastdm.kernels
        assert {name for name in sys.modules if name.split(".")[0] == "triton"} == before
    """)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_triton_without_a_device_is_refused() -> None:
    output = run("""
        from fastdm.kernels import use_backend
        try:
            with use_backend("triton"):
                raise SystemExit("the backend was granted")
        except RuntimeError as error:
            print(error)
    """)
    assert "there is no CUDA device; set TRITON_INTERPRET=1" in output


def test_the_interpreter_runs_the_kernels_and_the_reference_on_request() -> None:
    run(
        """
        import torch
        from unittest import mock
        from fastdm.kernels import uniform, use_backend
        from fastdm.kernels.random import triton
        key, rows = torch.tensor([1, 2]), torch.arange(3)
        for backend, calls in (("auto", 1), ("triton", 1), ("reference", 0)):
            with mock.patch.object(triton, "uniform", wraps=triton.uniform) as launcher:
                with use_backend(backend):
                    uniform(key, rows, 4, 0)
            assert launcher.call_count == calls, backend
        """,
        TRITON_INTERPRET="1",
    )


def test_the_backend_is_restored_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise KeyError("called")

    def run_reference() -> None:
        with use_backend("reference"):
            uniform(torch.tensor([1, 2]), torch.arange(3), 4, 0)

    monkeypatch.setattr(reference, "uniform", fail)
    with pytest.raises(KeyError, match="called"):
        run_reference()
    assert dispatch._backend.get() == "auto"


def test_the_choice_belongs_to_the_thread_that_made_it() -> None:
    inside, checked = threading.Event(), threading.Event()

    def choose() -> None:
        with use_backend("reference"):
            inside.set()
            checked.wait(60)

    thread = threading.Thread(target=choose)
    thread.start()
    assert inside.wait(60)
    assert dispatch._backend.get() == "auto"
    checked.set()
    thread.join()


def test_a_gradient_is_computed_with_the_backend_of_its_forward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where another thread computes it, as PyTorch does for tensors on a GPU."""
    used: list[str] = []
    backward = class_means.class_mean_difference_backward

    def record(*args: Any) -> Tensor:
        used.append(dispatch._backend.get())
        return backward(*args)

    monkeypatch.setattr(class_means, "class_mean_difference_backward", record)
    synthetic, offsets = torch.ones(2, 3, requires_grad=True), torch.tensor([0, 2])
    with use_backend("reference"):
        loss = class_mean_difference(torch.zeros(2, 3), synthetic, offsets, offsets)
    thread = threading.Thread(target=loss.backward)
    thread.start()
    thread.join()
    assert used == ["reference"]
    assert synthetic.grad is not None


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(ValueError, match="backend is 'cuda'"), use_backend("cuda"):  # type: ignore[arg-type]
        pass


@pytest.mark.skipif(extension.load() is None, reason="fastdm was installed without extension")
def test_the_extension_gets_what_it_takes_and_the_reference_the_rest() -> None:
    x = torch.zeros(1, 4, 4, 4)
    plain = (None, None, 1e-5)
    assert dispatch.implementation("norm_relu_pool", x, *plain, "relu", "avg").__module__.endswith("blocks.native")
    for others in ((x.double(), *plain, "relu", "avg"), (x, *plain, "swish", "avg"), (x, *plain, "relu", "max")):
        assert dispatch.implementation("norm_relu_pool", *others).__module__.endswith("blocks.reference")
    offsets = torch.tensor([0, 1])
    for values, form in ((x, "native"), (x.double(), "reference")):
        function = dispatch.implementation("class_mean_difference", values, values, offsets, offsets, "zero")
        assert function.__module__.endswith(f"class_means.{form}")


@pytest.mark.skipif(extension.load() is None, reason="fastdm was installed without extension")
def test_a_block_is_one_pass_only_where_the_extension_runs_it() -> None:
    x, weight = torch.empty(0), torch.empty(128, 3, 3, 3)
    assert stores_only_pooled(x, weight)
    assert stores_only_pooled(x.bfloat16(), weight) == (extension.load().tiles() != "none")
    assert not stores_only_pooled(x.to("meta"), weight)
    assert not stores_only_pooled(x, torch.empty(128, 3, 5, 5))
    with use_backend("reference"):
        assert not stores_only_pooled(x, weight)
