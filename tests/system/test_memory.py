"""An exhausted memory is one sentence that says what to make smaller."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import fastdm
from fastdm.condensation.loop import condense_resolved
from fastdm.condensation.settings import Settings
from fastdm.data.pool import Dataset, Pool
from fastdm.errors import FastDMError
from fastdm.evaluation.measure import measure
from fastdm.evaluation.protocol import Protocol
from fastdm.runs.options import RunOptions
from fastdm.system.memory import within_memory

# Memory is asked for that no address space holds, so that PyTorch refuses it on every machine. A process whose memory
# is limited would not do: Python itself does not survive every allocation that fails.

SIDE = 1 << 26
POOL = Pool(torch.zeros(1, dtype=torch.uint8).expand(4, 3, SIDE, SIDE), torch.tensor([0, 2, 4]))
"""Images that take one byte until they are copied."""
HUGE = Dataset("huge", POOL, POOL, ("ape", "bee"), (0.0,) * 3, (1.0,) * 3)
CPU = torch.device("cpu")


def too_much(*_: object, **__: object) -> Any:
    return torch.empty(1 << 60, dtype=torch.uint8)


class Greedy(torch.nn.Module):
    def embed(self, images: torch.Tensor) -> Any:
        return too_much(images)


class GreedyItems(torch.utils.data.Dataset[Any]):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, number: int) -> Any:
        return too_much(number)


def write_images(folder: Path) -> Path:
    for name in ("ape", "bee"):
        (folder / name).mkdir()
        Image.new("RGB", (4, 4)).save(folder / name / "0.png")
    return folder


def open_floats(_: Path) -> object:
    return fastdm.open_dataset((torch.zeros(1).expand(4, 3, SIDE, SIDE), torch.tensor([0, 0, 1, 1])))


def open_folder(folder: Path) -> object:
    return fastdm.open_dataset(write_images(folder))


def pack_folder(folder: Path) -> object:
    """What cannot be decoded is left out, but not what memory does not hold."""
    return fastdm.pack(write_images(folder), folder / "packed.fastdm", on_error="skip")


def condense(**options: Any) -> object:
    return fastdm.condense("digits", ipc=1, iterations=1, batch_real=1, device="cpu", **options)


def condense_huge(_: Path) -> object:
    settings = Settings(ipc=1, iterations=1, batch_real=1).resolve(HUGE, CPU)
    return condense_resolved(HUGE, settings, CPU, RunOptions(chunk_memory=1 << 80))


def measure_huge(_: Path) -> object:
    return measure(POOL, HUGE, Protocol(["ConvNet"], "none", num_eval=1, epochs=1), CPU)


def evaluate_soft(_: Path) -> object:
    pool = fastdm.train_pool("digits", networks=1, epochs=1, states=2, network="ConvNetD1", device="cpu")
    return fastdm.evaluate(fastdm.random_selection("digits", 1), "digits", labels="soft", pool=pool, device="cpu")


OPEN = "open a packed file"
PACK = "pack .* with fewer workers or a smaller size"
CONDENSE = "take a smaller chunk_memory, batch_real or ipc"
EVALUATE = "take a smaller network or batch_train, or fewer threads"
POOLS = "take .* fewer networks or states"


@pytest.mark.parametrize(
    ("call", "greedy", "advice"),
    [
        pytest.param(open_floats, "", OPEN, id="open_dataset, arrays"),
        pytest.param(lambda _: fastdm.open_dataset(GreedyItems()), "", OPEN, id="open_dataset, the user's items"),
        pytest.param(open_folder, "fastdm.data.image_files.decode_file", OPEN, id="open_dataset, files"),
        pytest.param(pack_folder, "fastdm.data.decode.decode_file", PACK, id="pack"),
        pytest.param(lambda _: fastdm.random_selection(HUGE, 1), "", "take a smaller ipc", id="random_selection"),
        pytest.param(lambda _: fastdm.train_pool(HUGE, networks=1, epochs=1), "", POOLS, id="train_pool"),
        pytest.param(
            lambda _: condense(pool="any"), "fastdm.networks.trained.NetworkPool.load", CONDENSE, id="condense, pool"
        ),
        pytest.param(lambda _: condense(network=Greedy), "", CONDENSE, id="condense, the user's network"),
        pytest.param(condense_huge, "", CONDENSE, id="condense_resolved"),
        pytest.param(evaluate_soft, "fastdm.evaluation.measure.relabel", EVALUATE, id="evaluate, soft labels"),
        pytest.param(measure_huge, "", EVALUATE, id="measure"),
    ],
)
def test_every_call_says_what_to_make_smaller(
    call: Callable[[Path], object], greedy: str, advice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if greedy:
        monkeypatch.setattr(greedy, too_much)
    with pytest.raises(FastDMError, match=rf"^the memory .* is not enough for [\d.]+ [PE]iB more; {advice}") as caught:
        call(tmp_path)
    assert "can't allocate memory" in str(caught.value.__cause__)


@pytest.mark.parametrize(
    ("call", "decode", "advice"),
    [
        (open_folder, "fastdm.data.image_files.decode_file", OPEN),
        (pack_folder, "fastdm.data.decode.decode_file", PACK),
    ],
)
def test_memory_that_the_system_lacks_is_not_blamed_on_a_file(
    call: Callable[[Path], object], decode: str, advice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_memory(path: Path, *_: object, **__: object) -> None:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM), str(path))

    monkeypatch.setattr(decode, without_memory)
    with pytest.raises(FastDMError, match=rf"^the memory .* is not enough; {advice}"):
        call(tmp_path)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 3145728 bytes. Error code 12"),
        RuntimeError("CUDA out of memory. Tried to allocate 3.00 MiB."),
        RuntimeError("can't start new thread"),
        OSError(12, "Cannot allocate memory"),
        ImportError("libx.so: failed to map segment from shared object"),
    ],
    ids=lambda error: f"{type(error).__name__} {error}"[:30],
)
def test_every_kind_of_exhaustion_is_known(error: Exception) -> None:
    wanted = r"^the memory .* is not enough( for 3\.0* MiB more)?; take less$"
    with pytest.raises(FastDMError, match=wanted) as caught, within_memory("take less"):
        raise error
    assert caught.value.__cause__ is error


def test_other_errors_pass() -> None:
    for error in (RuntimeError("shapes differ"), KeyError("x"), FastDMError("out of memory")):
        with pytest.raises(type(error)) as caught, within_memory("take less"):
            raise error
        assert caught.value is error
