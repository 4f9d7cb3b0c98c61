"""What the machine leaves: control groups of both versions, nested, limits of the process; and the precision set."""

import contextlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastdm.errors import FastDMError
from fastdm.system import device
from fastdm.system.device import chosen_backend, default_device, free_memory, precision_context

CPU = torch.device("cpu")
MIB = 1 << 20


def group(folder: Path, version: int, most: int | str, used: int, inactive_file: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    limit, usage = (
        ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    )
    (folder / limit).write_text(f"{most}\n")
    (folder / usage).write_text(f"{used}\n")
    name = "inactive_file" if version == 2 else "total_inactive_file"
    (folder / "memory.stat").write_text(f"anon 1\n{name} {inactive_file}\n")
    return folder


def left(tmp_path: Path, membership: str) -> list[int]:
    (tmp_path / "cgroup").write_text(membership)
    return list(device._group_memory(tmp_path / "cgroup", tmp_path / "fs"))


def test_every_group_round_the_process_counts(tmp_path: Path) -> None:
    group(tmp_path / "fs" / "outer", 2, 8 * MIB, 5 * MIB)
    group(tmp_path / "fs" / "outer" / "inner", 2, "max", MIB)
    group(tmp_path / "fs" / "outer" / "inner" / "own", 2, 4 * MIB, 2 * MIB, inactive_file=MIB)
    assert left(tmp_path, "0::/outer/inner/own\n") == [3 * MIB, 3 * MIB]


def test_version_1_counts_too(tmp_path: Path) -> None:
    group(tmp_path / "fs" / "memory" / "job", 1, 6 * MIB, 4 * MIB, inactive_file=MIB)
    assert left(tmp_path, "5:devices:/job\n4:memory:/job\n1:cpu,cpuacct:/\n0::/\n") == [3 * MIB]


def test_a_container_shows_its_own_group_as_the_root(tmp_path: Path) -> None:
    group(tmp_path / "fs", 2, 2 * MIB, MIB)
    assert left(tmp_path, "0::/docker/0123abcd\n") == [MIB]


def test_without_groups_nothing_is_limited(tmp_path: Path) -> None:
    assert left(tmp_path, "0::/\n") == []
    assert list(device._group_memory(tmp_path / "absent", tmp_path)) == []


def test_free_memory_follows_the_smallest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "_group_memory", lambda *_: iter([5 * MIB, 3 * MIB]))
    assert free_memory(CPU) == free_memory() == 3 * MIB
    monkeypatch.setattr(device, "_group_memory", lambda *_: iter([-MIB]))
    assert free_memory() == 0


def test_a_machine_without_any_limit_leaves_its_own_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "_machine_memory", lambda: 7 * MIB)
    for name in ("_group_memory", "_limit_memory"):
        monkeypatch.setattr(device, name, lambda *_: iter(()))
    assert free_memory(CPU) == free_memory() == 7 * MIB


def test_a_limit_of_the_address_space_is_kept() -> None:
    """In a process of its own, whose limit is lowered to 64 MiB more than it has."""
    code = """
import re, resource
from pathlib import Path
from fastdm.system.device import free_memory
taken = int(re.search(r"VmSize:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
resource.setrlimit(resource.RLIMIT_AS, (taken + (64 << 20), resource.RLIM_INFINITY))
print(free_memory())
"""
    found = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert 0 < found <= 64 * MIB


@pytest.mark.parametrize("outside", ["ieee", "tf32", "bf16"])
def test_the_precision_is_that_of_the_block_and_is_given_back(outside: str) -> None:
    matmul, conv = torch.backends.mkldnn.matmul, torch.backends.mkldnn.conv  # type: ignore[attr-defined]
    before = matmul.fp32_precision, conv.fp32_precision
    try:
        matmul.fp32_precision = conv.fp32_precision = outside
        with contextlib.suppress(ZeroDivisionError), precision_context("fp32", CPU) as dtype:
            assert dtype == torch.float32
            assert (matmul.fp32_precision, conv.fp32_precision) == ("ieee", "ieee")
            raise ZeroDivisionError
        assert (matmul.fp32_precision, conv.fp32_precision) == (outside, outside)
    finally:
        matmul.fp32_precision, conv.fp32_precision = before


def test_the_newer_switches_for_tf32_may_be_in_use() -> None:
    """PyTorch refuses to read the older ones then. In a process of its own, where they are nobody else's."""
    code = """
import torch
from fastdm.system.device import precision_context
places = torch.backends.cuda.matmul, torch.backends.cudnn.conv
for switch in (torch.backends, *places):
    switch.fp32_precision = "tf32"
    before = [place.fp32_precision for place in places]
    for precision, expected in (("fp32", "ieee"), ("bf16", "ieee"), ("tf32", "tf32")):
        with precision_context(precision, torch.device("cuda", 0)):
            assert [place.fp32_precision for place in places] == [expected] * 2, (switch, precision)
        assert [place.fp32_precision for place in places] == before
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_tf32_needs_a_gpu() -> None:
    with pytest.raises(FastDMError, match="precision 'tf32' needs a GPU"), precision_context("tf32", CPU):
        pass


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cuda:99", "cannot be used here"),
        ("tpu", "unknown; it must be cpu, cuda"),
        ("meta", "neither a CPU nor a CUDA device"),
    ],
)
def test_devices_that_are_not_there_are_refused(name: str, message: str) -> None:
    with pytest.raises(FastDMError, match=f"device '{name}' .*{message}|device '{name}' is {message}"):
        default_device(name)


def test_triton_on_a_gpu_leaves_the_cpu_its_own_forms(monkeypatch: pytest.MonkeyPatch) -> None:
    """The draws of images that are read ahead run on the CPU, in another thread; that Triton is there is still
    checked."""
    entered: list[str] = []
    monkeypatch.setattr(device, "use_backend", lambda name: entered.append(name) or contextlib.nullcontext())
    with chosen_backend("triton", torch.device("cuda", 0)):
        assert entered == ["triton", "auto"]
    for where in (CPU, None):
        entered.clear()
        with chosen_backend("triton", where):
            assert entered == ["triton"]


@pytest.mark.parametrize(
    ("current", "variables", "expected"),
    [
        (0, {}, 0),
        (2, {}, 2),
        (0, {"LOCAL_RANK": "3", "LOCAL_WORLD_SIZE": "4"}, 3),
        (2, {"LOCAL_RANK": "3", "LOCAL_WORLD_SIZE": "4"}, 2),  # the program has chosen it
        (0, {"LOCAL_RANK": "5", "LOCAL_WORLD_SIZE": "8"}, 1),  # more processes than GPUs
        (0, {"LOCAL_RANK": "3", "LOCAL_WORLD_SIZE": "1"}, 0),
    ],
)
def test_each_process_of_a_launcher_takes_the_gpu_of_its_local_number(
    current: int, variables: dict[str, str], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: current)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(device, "indexed_device", lambda chosen: chosen)
    assert default_device(None) == torch.device("cuda", expected)
