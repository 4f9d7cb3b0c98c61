"""Data loading: every row a ratio of two things that were timed in turns in this run, beside its target.

    python -m bench.loading --data_path data [--quick]

Rates are images per second of the access pattern of distribution matching: for each class, 256 distinct random images.
data_path holds tinyimagenet20/train and imagenet_samples (folders of JPEGs); without it the rows that decode are left
out. Packed files of random pixels are written to a temporary folder (TMPDIR): 2 GB each, with --quick 0.2 GB.
"""

import argparse
import gc
import io
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor

from bench import results
from bench.timer import in_turns
from fastdm import _native
from fastdm.data import Dataset, Pool, decode
from fastdm.data.packed.reading import open_packed
from fastdm.data.packing import pack

DRAWN = 256  # images of a class, as in the paper
CLASS_SIZE = 1281  # images of a class of ImageNet-1K
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Images per second with 2 workers on two cores with AVX-512, measured once: FFCV needs system libraries to be built.
FFCV = {32: 1_040_000, 64: 527_000}
# Why a target may be missed on a machine that does nothing else, by the beginning of the row's name.
REASONS = {
    "gather over the best sequential copy": "images lie apart: each begins with pages that neither the prefetcher nor "
    "the table of addresses of the core has seen",
    "gather over index_select": "index_select into a buffer is a parallel copy too: a plain gather can only tie it",
    "fused float32": "bound by writing float32: the less, the faster this machine's memory is for PyTorch's passes",
    "draw, share": "some 30 million indices are drawn a second, a twentieth of the time only where images are gathered "
    "at less than 1.5 million a second",
    "gather over FFCV": "FFCV's rate is another machine's",
    "gather over DataLoader": "the decoder gains more from this processor than the copy does",
    "packing over Pillow": "most of the time goes into decoding, which both leave to libjpeg-turbo",
    "packing, two threads": "two threads of this machine may share a core",
    "cold": "the kernel's read-ahead, or the answer time of this disk",
}


PLUGIN = "run of bench.loading"


class Run:
    """What the command line asks for, as a plugin of pytest, and the rows that the benchmarks find."""

    __name__ = PLUGIN  # by which pytest finds a plugin

    def __init__(self, data_path: Path, quick: bool) -> None:
        self.data_path = data_path
        self.repeats, self.file_bytes = (3, 2 * 10**8) if quick else (11, 2 * 10**9)
        self.rows: list[dict[str, Any]] = []
        self._load, self._cores = os.getloadavg()[0], len(os.sched_getaffinity(0))

    def add(self, found: Sequence[dict[str, Any]]) -> None:
        """Keep and save rows, those of a missed target with the reason."""
        for missed in (r for r in found if r["target"] is not None and not r["met"]):
            reason = next((why for name, why in REASONS.items() if missed["name"].startswith(name)), "")
            busy = f"on a busy machine: before the run its load was {self._load:.1f} on {self._cores} cores"
            notes = (missed.get("note"), reason, busy if self._load > self._cores / 2 else None)
            missed["note"] = "; ".join(filter(None, notes))
        self.rows.extend(found)
        settings = {"drawn": DRAWN, "file_bytes": self.file_bytes, "repeats": self.repeats}
        results.save("loading", self.rows, settings)


@pytest.fixture(scope="session")
def run(pytestconfig: pytest.Config) -> Run:
    return cast(Run, pytestconfig.pluginmanager.get_plugin(PLUGIN))


def row(
    name: str, ours: Sequence[float], baseline: Sequence[float], target: float | None, images: int = 0, **more: Any
) -> dict[str, Any]:
    """How many times as fast as the baseline."""
    ratios = [theirs / mine for mine, theirs in zip(ours, baseline, strict=True)]
    found: dict[str, Any] = {"name": name, "target": target, "ratio": rounded(results.spread(ratios))}
    if target is not None:
        found["met"] = found["ratio"]["median"] >= target
    if images:
        found["images_per_second"] = round(images / results.spread(ours)["median"])
        found["baseline_images_per_second"] = round(images / results.spread(baseline)["median"])
    return found | more


def rounded(spread: dict[str, float | int]) -> dict[str, float | int]:
    return {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in spread.items()}


def best(*timings: Sequence[float]) -> list[float]:
    return [min(times) for times in zip(*timings, strict=True)]


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# --- warm: gather, convert, draw -------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[64, 32], ids="{0}x{0}".format)
def packed(request: pytest.FixtureRequest, run: Run) -> Iterator[tuple[Path, int]]:
    """A packed file of random pixels, and their side."""
    with tempfile.TemporaryDirectory() as folder:
        yield random_set(Path(folder), request.param, run.file_bytes), request.param


def random_set(folder: Path, side: int, total_bytes: int) -> Path:
    """A packed file of random pixels, classes of ImageNet-1K's size."""
    classes = max(4, total_bytes // (3 * side * side * CLASS_SIZE))
    path = folder / f"{side}.fdm"
    images = torch.empty(classes * CLASS_SIZE, 3, side, side, dtype=torch.uint8)
    images.view(torch.int64).random_()
    pool = Pool(images, torch.arange(0, len(images) + 1, CLASS_SIZE))
    names = tuple(f"class {i}" for i in range(classes))
    pack(Dataset("random", pool, None, names, MEAN, STD), path)
    return path


@pytest.mark.parametrize("threads", [1, 2])
def test_warm(packed: tuple[Path, int], threads: int, benchmark: Any, run: Run) -> None:
    path, side = packed
    pool = open_packed(path, "mmap").train
    drawn_classes = torch.arange(min(100, pool.num_classes))
    steps = iter(range(10**9))
    indices = [pool.draw(0, step, DRAWN, drawn_classes).flatten() for step in range(8)]
    n = len(indices[0])
    out = torch.empty(n, 3, side, side, dtype=torch.uint8)
    normalised = torch.empty(n, 3, side, side)
    ordered = torch.arange(n)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    scale, shift = [1 / (255 * s) for s in STD], [-m / s for m, s in zip(MEAN, STD, strict=True)]
    pool.gather(indices[0], out=out)  # brings the file into memory
    memmap = np.memmap(path, np.uint8, "r", pool.backing.file.entries["images"].begin, tuple(pool.images.shape))  # type: ignore[call-overload,union-attr]

    def index() -> Tensor:
        return indices[next(steps) % len(indices)]

    def through_torch() -> Tensor:
        return torch.index_select(pool.images, 0, index()).float().div_(255).sub_(mean).div_(std)

    with torch_threads(threads):
        t = in_turns(
            benchmark,
            run.repeats,
            gather=lambda: _native.gather(pool.images, index(), out, threads=threads),
            copy=lambda: out.copy_(pool.images[:n]),
            streamed_copy=lambda: _native.gather(pool.images, ordered, out, threads=threads),
            index_select=lambda: torch.index_select(pool.images, 0, index(), out=out),
            fused=lambda: _native.gather(pool.images, index(), normalised, "planar", scale, shift, threads),
            index_select_float=through_torch,
            memmap=lambda: memmap[index().numpy()],
            draw=lambda: pool.draw(0, next(steps), DRAWN, drawn_classes),
        )
    where = f"{side}x{side}, {threads} thread{'s' if threads > 1 else ''}"
    copy_target = 0.8 if side == 64 or threads > 1 else 0.6
    rows = [
        row(
            f"gather over the best sequential copy, {where}",
            t["gather"],
            best(t["copy"], t["streamed_copy"]),
            copy_target,
            n,
        ),
        row(f"gather over index_select(out=), {where}", t["gather"], t["index_select"], 1.0, n),
        row(f"fused float32 over index_select to float32, {where}", t["fused"], t["index_select_float"], 5.0, n),
        row(f"gather over numpy memmap, {where}", t["gather"], t["memmap"], None, n),
    ]
    share = [draw / gather for draw, gather in zip(t["draw"], t["gather"], strict=True)]
    spread = rounded(results.spread(share))
    rows.append(
        {
            "name": f"draw, share of gather's time, {where}",
            "target": 0.05,
            "ratio": spread,
            "met": spread["median"] <= 0.05,
        }
    )
    if threads == 2:
        rate = rows[0]["images_per_second"]
        rows.append(
            {
                "name": f"gather over FFCV raw, {where}",
                "target": 1.3,
                "ratio": {"n": 0, "median": round(rate / FFCV[side], 2)},
                "met": rate / FFCV[side] >= 1.3,
                "images_per_second": rate,
                "baseline_images_per_second": FFCV[side],
                "note": "FFCV with 2 workers: quoted, measured on another machine and not in this run",
            }
        )
    run.add(rows)


def test_public(packed: tuple[Path, int], benchmark: Any, run: Run) -> None:
    """The public code's get_images: a permutation of a list of indices, float32 images on the CPU."""
    path, side = packed
    pool = open_packed(path, "mmap").train
    classes = min(pool.num_classes, max(1, 2**30 // (3 * side * side * 4 * CLASS_SIZE)))
    images_all = pool.images[: classes * CLASS_SIZE].float()
    indices_class = [list(range(c * CLASS_SIZE, (c + 1) * CLASS_SIZE)) for c in range(classes)]
    steps = iter(range(10**9))

    def public() -> None:
        for c in range(classes):
            _ = images_all[np.random.permutation(indices_class[c])[:DRAWN]]  # noqa: NPY002 what the public code calls

    out = torch.empty(classes, DRAWN, 3, side, side)

    def ours() -> None:
        index = pool.draw(0, next(steps), DRAWN, torch.arange(classes))
        pool.gather(index, dtype=torch.float32, mean=MEAN, std=STD, out=out)

    t = in_turns(benchmark, run.repeats // 3, ours=ours, public=public)
    name = f"draw and gather float32 over the public code, {side}x{side}"
    run.add([row(name, t["ours"], t["public"], None, classes * DRAWN)])


# --- JPEGs -----------------------------------------------------------------------------------------------------------


def loader_row(folder: Path, what: str, pool: Pool, target: float) -> dict[str, Any]:
    """torchvision's ImageFolder through a DataLoader of 2 workers, against gathering packed images of that size."""
    from torch.utils.data import DataLoader
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    steps = transforms.Compose([transforms.Resize((64, 64)), transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    loader = DataLoader(ImageFolder(str(folder), steps), batch_size=64, shuffle=True, num_workers=2)
    classes = torch.arange(min(100, pool.num_classes))
    out = torch.zeros(len(classes), DRAWN, 3, 64, 64, dtype=torch.uint8)
    ours, theirs = [], []
    for turn in range(3):
        count, start = 0, 0.0
        for images, _ in loader:
            if start:
                count += len(images)
            else:  # the first batch brings the workers up
                start = time.perf_counter()
        theirs.append((time.perf_counter() - start) / max(1, count))
        index = pool.draw(0, turn, DRAWN, classes)
        gathering = []
        for _ in range(9):
            start = time.perf_counter()
            pool.gather(index, out=out)
            gathering.append(time.perf_counter() - start)
        ours.append(statistics.median(gathering) / index.numel())
    return row(f"gather over DataLoader with 2 workers, {what}", ours, theirs, target, 1)


@pytest.mark.parametrize("packed", [64], indirect=True, ids=["64x64"])
def test_loader(packed: tuple[Path, int], run: Run) -> None:
    pool = open_packed(packed[0], "ram").train
    sets = (("tinyimagenet20/train", "JPEGs of 64x64", 200.0), ("imagenet_samples", "JPEGs of about 500x375", 2000.0))
    for name, what, target in sets:
        if (run.data_path / name).is_dir():
            run.add([loader_row(run.data_path / name, what, pool, target)])


def test_packing(benchmark: Any, run: Run) -> None:
    files = sorted((run.data_path / "imagenet_samples").glob("*/*"))
    if not files:
        pytest.skip(f"{run.data_path} has no imagenet_samples/")

    def pillow(path: Path) -> np.ndarray:
        with Image.open(io.BytesIO(path.read_bytes())) as image:
            return np.asarray(image.convert("RGB").resize((64, 64), Image.Resampling.BOX)).transpose(2, 0, 1)

    def ours(path: Path) -> np.ndarray:
        return decode.decode_file(path, 64)

    def all_of(function: Callable[[Path], np.ndarray], threads: int) -> None:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(function, files))

    for path in files:  # no speed of what is wrong
        np.testing.assert_array_equal(ours(path), pillow(path))
    t = in_turns(
        benchmark,
        run.repeats // 2,
        ours=lambda: all_of(ours, 1),
        pillow=lambda: all_of(pillow, 1),
        two=lambda: all_of(ours, 2),
    )
    what = "JPEGs of about 500x375 to 64x64"
    rows = [
        row(
            f"packing over Pillow, one thread, {what}",
            t["ours"],
            t["pillow"],
            1.2,
            len(files),
            decoder=decode.decoder_name(),
        ),
        row(f"packing, two threads over one, {what}", t["two"], t["ours"], 1.9, len(files)),
    ]
    run.add(rows)


# --- cold, and larger than memory ------------------------------------------------------------------------------------


def forget(path: Path) -> None:
    """Drop a file from the page cache."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def bytes_read() -> int:
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["read_bytes"])


@pytest.mark.parametrize("packed", [64], indirect=True, ids=["64x64"])
def test_cold(packed: tuple[Path, int], run: Run) -> None:
    """Random images of a file that is not in memory: direct reads against a mapping as it comes.

    Nothing may map the file meanwhile: mapped pages are not dropped from the cache.
    """
    path = packed[0]
    gc.collect()
    pool = open_packed(path, "direct").train
    begin, image_bytes = pool.backing.begin, pool.images[0].numel()  # type: ignore[union-attr]
    few, many = 100, 4000
    direct, mapped, amplification = [], [], []
    for turn in range(min(5, run.repeats)):
        index = torch.from_numpy(np.random.default_rng(turn).permutation(len(pool))[:many])
        forget(path)
        before, start = bytes_read(), time.perf_counter()
        pool.gather(index)
        direct.append((time.perf_counter() - start) / many)
        amplification.append((bytes_read() - before) / (many * image_bytes))
        forget(path)
        images = np.memmap(path, np.uint8, "r", begin, tuple(pool.images.shape))
        start = time.perf_counter()
        _ = images[index[:few].numpy()]
        mapped.append((time.perf_counter() - start) / few)
        del images
    spread = rounded(results.spread(amplification))
    rows = [
        row("cold: direct reads over a default mapping, 64x64", direct, mapped, 50.0, 1),
        {"name": "cold: bytes read over bytes wanted", "target": 1.1, "ratio": spread, "met": spread["median"] <= 1.1},
    ]
    run.add(rows)


LARGE = """
import sys, threading, time, torch
from pathlib import Path
from fastdm.data.packed.reading import open_packed

def resident():
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * sum(int(fields[kind].split()[0]) for kind in ("RssAnon", "RssShmem"))

start = time.perf_counter()
pool = open_packed(sys.argv[1], "direct").train
opened = time.perf_counter() - start
start = time.perf_counter()
index = pool.draw(0, 0, 256)
drawn = time.perf_counter() - start
most, images, start = 0, 0, time.perf_counter()
for chunk in pool.stream([pool.draw(0, step, 256)[:100] for step in range(3)]):
    images += chunk.images.shape[0] * chunk.images.shape[1]
    most = max(most, resident())
print(opened, drawn, most, images / (time.perf_counter() - start))
"""


def test_large(tmp_path: Path, run: Run) -> None:
    """A file shaped like ImageNet-1K at 64x64, 15.7 GB, whose pixels are a hole: opened, drawn from, streamed."""
    from fastdm.data.packed.format import header_bytes

    classes, total = 1000, 1000 * CLASS_SIZE
    names = "[" + ",".join(f'"{i}"' for i in range(classes)) + "]"
    metadata = {"format": "fastdm.packed", "version": "1.0", "name": "large", "classes": names}
    metadata |= {"mean": str(list(MEAN)), "std": str(list(STD))}
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {"images": ("U8", (total, 3, 64, 64)), "skipped": ("U8", (8,))}
    tensors |= {"class_offsets": ("I64", (classes + 1,)), "class_crc32": ("I64", (classes,))}
    tensors["source_index"] = ("I64", (total,))
    path = tmp_path / "large.fdm"
    with path.open("wb") as file:
        file.write(header_bytes(metadata, tensors, 1 << 15))
        file.seek(total * 3 * 64 * 64, os.SEEK_CUR)
        file.write(b"[]".ljust(8) + np.arange(0, total + 1, CLASS_SIZE, dtype=np.int64).tobytes())
        file.truncate(file.tell() + 8 * (classes + total))
    program = subprocess.run([sys.executable, "-c", LARGE, str(path)], capture_output=True, text=True, check=True)
    opened, drawn, most, rate = map(float, program.stdout.split())
    path.unlink()

    def limit(name: str, value: float, target: float) -> dict[str, Any]:
        return {
            "name": name,
            "target": target,
            "ratio": {"n": 1, "median": float(f"{value:.3g}")},
            "met": value <= target,
        }

    rows = [
        limit("ImageNet-1K at 64x64, 15.7 GB: seconds to open", opened, 0.1),
        limit("ImageNet-1K at 64x64: seconds to draw 256 of every class", drawn, 0.1),
        limit("ImageNet-1K at 64x64: GB resident beside the page cache while streaming", most / 1e9, 1.0)
        | {"images_per_second": round(rate), "note": "the file is a hole: its rate is not that of a disk"},
    ]
    run.add(rows)


# --- all of it -------------------------------------------------------------------------------------------------------


def show(rows: Sequence[dict[str, Any]]) -> None:
    table = Table("", "median", "p20..p80", "target", "", "images/s", "baseline")
    for r in rows:
        ratio = r["ratio"]
        spread = f"{ratio['p20']:.3g}..{ratio['p80']:.3g}" if "p20" in ratio else ""
        verdict = "" if r["target"] is None else "met" if r["met"] else "missed"
        rates = [f"{r[key]:,}" if key in r else "" for key in ("images_per_second", "baseline_images_per_second")]
        table.add_row(r["name"], f"{ratio['median']:.3g}", spread, f"{r['target'] or ''}", verdict, *rates)
    Console(width=150).print(table)
    for r in rows:
        if "note" in r:
            print(f"{r['name']}: {r['note']}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_path", type=Path, default=Path("data"))
    parser.add_argument("--quick", action="store_true", help="small files and few repeats: to see that it runs")
    arguments = parser.parse_args()
    run = Run(arguments.data_path, arguments.quick)
    status = pytest.main(["-q", "-p", "no:cacheprovider", "--benchmark-columns=median,iqr,rounds", __file__], [run])
    show(run.rows)
    return status


if __name__ == "__main__":
    sys.exit(main())
