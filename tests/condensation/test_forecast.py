"""The forecast: memory against what was measured, time against the work, what is refused."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastdm.condensation.calibration import FIXED_SECONDS, Measured, calibrate, modelled
from fastdm.condensation.forecast import Forecast, forecast
from fastdm.condensation.settings import Settings
from fastdm.condensation.shards import balanced, class_work
from fastdm.condensation.work import count_work
from fastdm.data.pool import Dataset, Pool
from fastdm.data.unread import unread_dataset
from fastdm.errors import FastDMError
from fastdm.evaluation.protocol import Protocol
from fastdm.networks.architectures import build_network
from fastdm.networks.drawn import RandomNetworks
from fastdm.networks.trained import unread_pool
from fastdm.system.device import free_memory
from fastdm.system.gpus import GPUS, find_gpu
from tests.fakegpu.steps import SETS, Case

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
RATE = Measured(0.5, 0.25, 2, 1e9, "a machine")
RECORD = Path(__file__).parents[2] / "bench" / "results" / "fakegpu.json"

MEASURE = """
import torch, fastdm
from fastdm.condensation.calibration import process_bytes
from fastdm.data.pool import Dataset, Pool
from fastdm.runs.recording import peak_resident
images = torch.zeros(320, 3, 32, 32, dtype=torch.uint8).random_(0, 256)
pool = Pool(images, torch.arange(11) * 32)
data = Dataset("random", pool, None, tuple("0123456789"), (0.5,) * 3, (0.25,) * 3)
print(process_bytes())
fastdm.condense(
    data, 10, iterations=1, batch_real=32, network="ConvNetBN", init="noise", precision="fp32", device="cpu"
)
print(peak_resident())
"""


def made(data: Dataset, settings: Settings, device: torch.device = CPU, ranks: int = 1, gib: int = 80) -> Forecast:
    rate = RATE if device == CPU else modelled(GPUS["H200"], settings)
    return forecast(data, settings, device, rate, memory=gib << 30, ranks=ranks)


def test_the_planned_memory_is_the_measured_peak_on_a_cpu() -> None:
    """A process measures its peak around one iteration of 320 real images at once, which take most of it.

    All tensors are counted, so that what remains is what their library and the allocator take besides: less than 15 %
    of the bytes that the condensation adds to the process.
    """
    out = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True).stdout
    base, peak = map(int, out.split())
    data = unread_dataset(10, 320, (3, 32, 32), in_memory=True)
    settings = Settings(ipc=10, batch_real=32, network="ConvNetBN", precision="fp32").resolve(data, CPU)
    found = forecast(data, settings, CPU, None, memory=free_memory(), process_bytes=base, saves=False)
    added = found.bytes("host") - base
    assert added > 300 << 20
    assert abs(added - (peak - base)) <= 0.15 * (peak - base)


@pytest.mark.parametrize(
    ("case", "gib"), [*((case, 24) for case in SETS), *((case, 140) for case in SETS if "ImageNet-1K" in case.name)]
)
def test_the_planned_memory_is_the_peak_of_pytorchs_allocator(case: Case, gib: int) -> None:
    """As it was recorded on GPUs that only count: of tensors, to 1 %."""
    rows = {row["name"]: row for row in json.loads(RECORD.read_text())["rows"]}
    row = rows[f"{gib} GiB: {case.name}"]
    classes, each, *shape = case.sizes
    data = unread_dataset(classes, classes * each, (shape[0], shape[1], shape[2]))
    given = {"ipc": 1, "batch_real": 256, "init": "noise", "precision": "bf16"} | case.settings
    found = made(data, Settings(**given).resolve(data, GPU), GPU, gib=gib)
    assert (found.plan.residence, found.plan.chunk_classes) == (row["residence"], row["chunk_classes"])
    tensors = found.bytes("device") - found.plan.library_bytes
    assert tensors / 2**20 == pytest.approx(row["peak_mib"], rel=0.01)


def test_the_work_is_that_of_the_convolutions() -> None:
    """A convolution's result of h × w from c channels to k takes 2·9·c·k·h·w FLOPs; synthetic images pass twice."""
    data = unread_dataset(3, 30, (3, 32, 32))
    network = build_network("ConvNet", channels=3, num_classes=3, image_size=32, frozen=True, device="meta")
    settings = Settings(ipc=2, batch_real=8).resolve(data, CPU)
    work = count_work(RandomNetworks(network), data.train, settings, torch.float32)
    image = sum(18 * before * 128 * side**2 for before, side in ((3, 32), (128, 16), (128, 8)))
    assert work.flops == 3 * (8 + 2 * 2) * image
    assert work.read == 3 * 8 * 3 * 32 * 32


def test_ranks_share_the_classes_and_their_memory() -> None:
    data = unread_dataset(1000, 1_281_167, (3, 64, 64))
    settings = Settings(ipc=10, precision="bf16").resolve(data, GPU)
    one, eight = (made(data, settings, GPU, ranks) for ranks in (1, 8))
    assert (one.classes, eight.classes) == (1000, 125)
    for name in ("pool of real images", "synthetic images"):
        whole, part = (next(p.bytes for p in each.parts if p.name == name) for each in (one, eight))
        assert part == pytest.approx(whole / 8, rel=1e-3)
    assert one.seconds is not None
    assert eight.seconds is not None
    assert eight.seconds - FIXED_SECONDS == pytest.approx((one.seconds - FIXED_SECONDS) / 8, rel=1e-3)
    assert eight.serial == pytest.approx(FIXED_SECONDS / eight.seconds)
    with pytest.raises(FastDMError, match="ranks is 1001; it must be at least 1 and at most 1000"):
        made(data, settings, GPU, 1001)


def test_ranks_are_planned_for_as_they_share_classes_of_other_sizes() -> None:
    """Four classes, of which the first has as many images as the rest: ranges of 1 and of 3 classes, as in a run."""
    sizes = torch.tensor([90, 30, 30, 30])
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)])
    pool = Pool(torch.zeros(180, 3, 32, 32, dtype=torch.uint8), offsets)
    data = Dataset("unequal", pool, None, tuple("abcd"), (0.5,) * 3, (0.25,) * 3)
    settings = Settings(ipc=1, batch_real=100, network="ConvNetD1", precision="bf16").resolve(data, GPU)
    assert balanced(class_work(data, settings), 2) == [0, 1, 4]
    found = made(data, settings, GPU, ranks=2)
    assert found.read_bytes == 90 * 3 * 32 * 32  # the second rank has more synthetic images, and takes longer
    parts = {part.name: part.bytes for part in found.parts}
    assert found.classes == 3
    assert parts["synthetic images"] == 3 * 3 * 32 * 32 * 4
    network = RandomNetworks(
        build_network("ConvNetD1", channels=3, num_classes=4, image_size=32, frozen=True, device="meta")
    )
    works = [count_work(network, pool.classes(*each), settings, torch.bfloat16) for each in ((0, 1), (1, 4))]
    rate = modelled(GPUS["H200"], settings)
    assert found.seconds == max(rate.iteration(work) for work in works)


def test_the_pool_of_trained_networks_is_counted() -> None:
    """On the device and on the host; its shape suffices."""
    data = unread_dataset(10, 100, (3, 32, 32))
    pool = unread_pool("ConvNet", data.image_shape, 10, networks=5, states=61)
    settings = Settings(ipc=1, networks="trained", network="ConvNet", precision="bf16", ce_weight=1.0)
    settings = settings.resolve(data, GPU)
    found = forecast(data, settings, GPU, None, memory=80 << 30, pool=pool)
    parts = {part.name: part.bytes for part in found.parts}
    parameters = pool.weights.shape[2]
    assert parts["pool of trained networks"] == 5 * 61 * 4 * parameters
    assert parts["pool of trained networks, on the host"] == 5 * 61 * 4 * parameters
    assert parts["networks"] == 2 * 2 * parameters  # two of them, in bfloat16
    assert found.seconds is None


def test_a_file_that_memory_does_not_hold_is_not_counted() -> None:
    data = unread_dataset(10, 100_000, (3, 64, 64))
    settings = Settings(ipc=1, network="ConvNetD4", precision="fp32").resolve(data, CPU)
    small, large = (made(data, settings, gib=gib) for gib in (1, 16))
    names = [{part.name for part in each.parts} for each in (small, large)]
    assert ["pool of real images" in each for each in names] == [False, True]


def test_an_evaluation_takes_its_trainings() -> None:
    """Forward and twice that back, for all images of all epochs; the public loop has one epoch more."""
    data = unread_dataset(10, 100, (3, 32, 32))
    settings = Settings(ipc=2, precision="fp32").resolve(data, CPU)
    protocol = Protocol(["ConvNet"], "none", num_eval=3, epochs=4)
    found = forecast(data, settings, CPU, RATE, memory=8 << 30, protocol=protocol)
    image = sum(18 * before * 128 * side**2 for before, side in ((3, 32), (128, 16), (128, 8))) + 2 * 128 * 16 * 10
    assert found.evaluation_seconds == pytest.approx(3 * 5 * 20 * 3 * image / 1e9)


def test_a_calibration_measures_seconds_of_random_images() -> None:
    data = unread_dataset(4, 40, (1, 8, 8))
    settings = Settings(ipc=1, batch_real=4, network="ConvNetD1", precision="fp32").resolve(data, CPU)
    rate = calibrate(data, settings, CPU, seconds=0.5)
    assert 1 <= rate.classes <= 4
    assert rate.each > 0
    assert rate.start >= 0
    assert rate.source.startswith("measured on this CPU with ")


def test_a_gpu_is_found_however_it_is_written() -> None:
    assert find_gpu("a100 80") is GPUS["A100-80"]
    with pytest.raises(FastDMError, match="unknown device 'B999'"):
        find_gpu("B999")
