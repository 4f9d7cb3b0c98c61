"""Data loading: every row a ratio of two things that were timed interleaved in this run, with its target.

Rates are images per second of the access pattern of distribution matching: for each class, 256 distinct random images.
data_path holds tinyimagenet20/train and imagenet_samples (folders of JPEGs); without it the rows that decode are left
out. Packed files of random pixels, of 2 GB or with --smoke 20 MB, are written to a temporary folder (TMPDIR).
"""

import gc
import io
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from itertools import count, cycle, pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import fastdm
from bench.baselines.public_images import PublicPool
from bench.harness import arguments, plots, records
from bench.harness.records import Result, Row, Suite
from bench.harness.timer import apart, host_times, threads, timed
from bench.harness.workloads import CPU, Workload
from fastdm.data import decode
from fastdm.data.packed.format import PackedFile, header_bytes
from fastdm.system.native import native

DRAWN = 256  # images of a class, as in the paper
CLASS_SIZE = 1281  # images of a class of ImageNet-1K
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Images per second with 2 workers on two cores with AVX-512, measured once: FFCV needs system libraries to be built.
FFCV = {32: 1_040_000, 64: 527_000}
# Why a target may be missed.
APART = "images lie apart: each begins with pages that neither the prefetcher nor the core's address table has seen"
TIE = "index_select into a buffer is a parallel copy too: a plain gather can only tie it"
BOUND = "bound by writing float32: the less, the faster this machine's memory is for PyTorch's passes"
DRAWS = "an index takes some 2 ns; a call, whose code and data are not in the caches here, some 0.2 ms besides"
DECODER = "the decoder gains more from this processor than the copy does"
DECODING = "most of the time goes into decoding, which both leave to libjpeg-turbo"
DISK = "the kernel's read-ahead, or the answer time of this disk"
SIZES = {"full": (11, 2 * 10**9), "smoke": (2, 2 * 10**7)}  # repeats, bytes of a file


def row(
    name: str, values: Sequence[float], target: float | None = None, why: str = "", at_most: bool = False, **more: Any
) -> Row:
    """A ratio with its target. why: the reason why a machine that does nothing else may miss it."""
    spread = {key: float(f"{value:.4g}") for key, value in records.spread(values).items()} | {"n": len(values)}
    found: Row = {"name": name, "target": target, "ratio": spread, **more}
    if target is not None:
        found["met"] = spread["median"] <= target if at_most else spread["median"] >= target
        if not found["met"]:
            found["note"] = "; ".join(filter(None, (more.get("note"), why)))
    return found


def faster(name: str, ours: Sequence[float], baseline: Sequence[float], images: int, *target: Any, **more: Any) -> Row:
    """How many times as fast as the baseline; images: of one call; target: and why it may be missed."""
    rates = [round(images / records.spread(times)["median"]) for times in (ours, baseline)]
    more |= {"images_per_second": rates[0], "baseline_images_per_second": rates[1]}
    return row(name, [theirs / mine for mine, theirs in zip(ours, baseline, strict=True)], *target, **more)


def interleaved(repeats: int, **functions: Callable[[], object]) -> dict[str, list[float]]:
    return host_times(functions, CPU, rounds=repeats, seconds=60.0, warm_up=1, sample=0.0)


def random_set(folder: Path, side: int, total_bytes: int) -> Path:
    """A packed file of random images, classes of ImageNet-1K's size."""
    classes, path = max(4, total_bytes // (3 * side * side * CLASS_SIZE)), folder / f"{side}.fdm"
    fastdm.pack(Workload("random", classes, side, 1, CLASS_SIZE).dataset(CPU), path)
    return path


def memory_map(path: Path) -> np.ndarray:
    """NumPy's mapping of the images of a packed file."""
    images = PackedFile(path).entries["images"]
    return np.memmap(path, np.uint8, "r", images.begin, images.shape)


# --- warm: gather, convert, draw -------------------------------------------------------------------------------------


def warm(path: Path, side: int, repeats: int, workers: int) -> Iterator[Row]:
    """Ways to gather the images of an index, and sequential copies of as many."""
    core: Any = native()
    pool = fastdm.open_dataset(path, io="mmap").train
    drawn_classes = torch.arange(min(100, pool.num_classes))
    indices = [pool.draw(0, step, DRAWN, drawn_classes).flatten() for step in range(8)]
    n = len(indices[0])
    steps, ordered, index = count(), torch.arange(n), partial(next, cycle(indices))
    out = torch.empty(n, 3, side, side, dtype=torch.uint8)
    normalised = torch.empty(n, 3, side, side)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    scale, shift = [1 / (255 * s) for s in STD], [-m / s for m, s in zip(MEAN, STD, strict=True)]
    mapped = memory_map(path)
    pool.gather(indices[0], out=out)  # brings the file into memory
    with threads(workers):
        t = interleaved(
            repeats,
            gather=lambda: core.gather(pool.images, index(), out, threads=workers),
            copy=lambda: out.copy_(pool.images[:n]),
            streamed_copy=lambda: core.gather(pool.images, ordered, out, threads=workers),
            index_select=lambda: torch.index_select(pool.images, 0, index(), out=out),
            fused=lambda: core.gather(pool.images, index(), normalised, "planar", scale, shift, workers),
            index_select_float=lambda: pool.images.index_select(0, index()).float().div_(255).sub_(mean).div_(std),
            memmap=lambda: mapped[index().numpy()],
            draw=lambda: pool.draw(0, next(steps), DRAWN, drawn_classes),
        )
    where = f"{side}x{side}, {workers} thread{'s' if workers > 1 else ''}"
    best = [min(times) for times in zip(t["copy"], t["streamed_copy"], strict=True)]
    target = 0.8 if side == 64 or workers > 1 else 0.6
    yield faster(f"gather over the best sequential copy, {where}", t["gather"], best, n, target, APART)
    yield faster(f"gather over index_select(out=), {where}", t["gather"], t["index_select"], n, 1.0, TIE)
    name = f"fused float32 over index_select to float32, {where}"
    yield faster(name, t["fused"], t["index_select_float"], n, 5.0, BOUND)
    yield faster(f"gather over numpy memmap, {where}", t["gather"], t["memmap"], n)
    shares = [draw / gather for draw, gather in zip(t["draw"], t["gather"], strict=True)]
    yield row(f"draw, share of gather's time, {where}", shares, 0.05, DRAWS, at_most=True)
    if workers == 2:
        rate = round(n / records.spread(t["gather"])["median"])
        rates: dict[str, Any] = {"images_per_second": rate, "baseline_images_per_second": FFCV[side]}
        note = "FFCV with 2 workers: quoted, measured on another machine and not in this run"
        yield row(f"gather over FFCV raw, {where}", [rate / FFCV[side]], 1.3, note=note, **rates)


def public(path: Path, side: int, repeats: int) -> Row:
    """The public code's get_images: a permutation of a list of indices, float32 images on the CPU."""
    pool = fastdm.open_dataset(path, io="mmap").train
    classes = min(pool.num_classes, max(1, 2**30 // (3 * side * side * 4 * CLASS_SIZE)))
    labels = torch.arange(classes).repeat_interleave(CLASS_SIZE).tolist()
    real, steps = PublicPool(pool.images[: len(labels)].float(), labels, classes), count()
    out = torch.empty(classes, DRAWN, 3, side, side)

    def ours() -> None:
        index = pool.draw(0, next(steps), DRAWN, torch.arange(classes))
        pool.gather(index, dtype=torch.float32, mean=MEAN, std=STD, out=out)

    def theirs() -> None:
        for c in range(classes):
            real.get_images(c, DRAWN)

    t = interleaved(repeats, ours=ours, public=theirs)
    name = f"draw and gather float32 over the public code, {side}x{side}"
    return faster(name, t["ours"], t["public"], classes * DRAWN, 1.0, BOUND)


# --- JPEGs -----------------------------------------------------------------------------------------------------------


def loader(folder: Path, what: str, path: Path, target: float) -> Row:
    """torchvision's ImageFolder through a DataLoader of 2 workers, against gathering packed images of that size."""
    from torch.utils.data import DataLoader
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    pool = fastdm.open_dataset(path, io="ram").train
    steps = transforms.Compose([transforms.Resize((64, 64)), transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    batches = DataLoader(ImageFolder(str(folder), steps), batch_size=64, shuffle=True, num_workers=2)
    classes = torch.arange(min(100, pool.num_classes))
    out = torch.zeros(len(classes), DRAWN, 3, 64, 64, dtype=torch.uint8)
    ours, theirs = [], []
    for turn in range(3):
        rest = iter(batches)
        next(rest)  # brings the workers up
        start = time.perf_counter()
        images = sum(len(batch) for batch, _ in rest)
        theirs.append((time.perf_counter() - start) / max(1, images))
        index = pool.draw(0, turn, DRAWN, classes)
        gathering = [timed(partial(pool.gather, index, out=out), 1, CPU) for _ in range(9)]
        ours.append(records.spread(gathering)["median"] / index.numel())
    return faster(f"gather over DataLoader with 2 workers, {what}", ours, theirs, 1, target, DECODER)


def packing(files: list[Path], repeats: int) -> Iterator[Row]:
    def pillow(path: Path) -> np.ndarray:
        with Image.open(io.BytesIO(path.read_bytes())) as image:
            return np.asarray(image.convert("RGB").resize((64, 64), Image.Resampling.BOX)).transpose(2, 0, 1)

    ours = partial(decode.decode_file, size=64)

    def all_of(function: Callable[[Path], np.ndarray], workers: int) -> None:
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(function, files))

    for path in files:  # no speed of what is wrong
        np.testing.assert_array_equal(ours(path), pillow(path))
    halves = [files[::2], files[1::2]]
    with ProcessPoolExecutor(2, get_context("spawn")) as processes:
        list(processes.map(_decode, halves))  # brings both up
        t = interleaved(
            max(2, repeats // 2),
            ours=lambda: all_of(ours, 1),
            pillow=lambda: all_of(pillow, 1),
            two=lambda: all_of(ours, 2),
            one_process=lambda: processes.submit(_decode, files).result(),
            two_processes=lambda: list(processes.map(_decode, halves)),
        )
    what, n, decoder = "JPEGs of about 500x375 to 64x64", len(files), decode.decoder_name()
    yield faster(f"packing over Pillow, one thread, {what}", t["ours"], t["pillow"], n, 1.2, DECODING, decoder=decoder)
    ceiling = records.spread(t["one_process"])["median"] / records.spread(t["two_processes"])["median"]
    note = f"two processes of Pillow, which share nothing but the processor, decode {ceiling:.2f} times as fast as one"
    yield faster(f"packing, two threads over one, {what}", t["two"], t["ours"], n, 1.9, note=note)


def _decode(files: list[Path]) -> None:
    for path in files:
        with Image.open(path) as image:
            image.load()


# --- cold, and larger than memory ------------------------------------------------------------------------------------


def forget(path: Path) -> None:
    """Drop a file from the page cache."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def bytes_read() -> int:
    return int(Path("/proc/self/io").read_text().split("read_bytes: ")[1].split()[0])


def cold(path: Path, repeats: int) -> Iterator[Row]:
    """Random images of a file that is not in memory: direct reads against a default mapping.

    Nothing may map the file meanwhile: mapped pages are not dropped from the cache.
    """
    gc.collect()
    pool = fastdm.open_dataset(path, io="direct").train
    few, many, image_bytes = 100, min(4000, len(pool)), pool.images[0].numel()
    direct, mapped, amplification = [], [], []
    for turn in range(min(5, repeats)):
        index = torch.from_numpy(np.random.default_rng(turn).permutation(len(pool))[:many])
        forget(path)
        before = bytes_read()
        direct.append(timed(partial(pool.gather, index), 1, CPU) / many)
        amplification.append((bytes_read() - before) / (many * image_bytes))
        forget(path)
        images = memory_map(path)
        mapped.append(timed(partial(images.__getitem__, index[:few].numpy()), 1, CPU) / few)
        del images
    yield faster("cold: direct reads over a default mapping, 64x64", direct, mapped, 1, 50.0, DISK)
    yield row("cold: bytes read over bytes wanted", amplification, 1.1, DISK, at_most=True)


def _large(path: Path) -> tuple[float, float, float, float]:
    """Seconds to open and to draw, bytes resident at most, images per second; in a process of its own."""
    moments = [time.perf_counter()]
    pool = fastdm.open_dataset(path, io="direct").train
    moments.append(time.perf_counter())
    pool.draw(0, 0, DRAWN)
    moments.append(time.perf_counter())
    most = images = 0
    for chunk in pool.stream([pool.draw(0, step, DRAWN)[:100] for step in range(3)]):
        images += chunk.images.shape[0] * chunk.images.shape[1]
        status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
        most = max(most, sum(1024 * int(status[name].split()[0]) for name in ("RssAnon", "RssShmem")))
    opened, drawn, streamed = (after - before for before, after in pairwise([*moments, time.perf_counter()]))
    return opened, drawn, most, images / streamed


def large(folder: Path) -> Iterator[Row]:
    """A file shaped like ImageNet-1K at 64x64, 15.7 GB, whose pixels are a hole: opened, drawn from, streamed."""
    classes, total = 1000, 1000 * CLASS_SIZE
    names = "[" + ",".join(f'"{i}"' for i in range(classes)) + "]"
    metadata = {"format": "fastdm.packed", "version": "1.0", "name": "large", "classes": names}
    metadata |= {"mean": str(list(MEAN)), "std": str(list(STD))}
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {"images": ("U8", (total, 3, 64, 64)), "skipped": ("U8", (8,))}
    tensors |= {"class_offsets": ("I64", (classes + 1,)), "class_crc32": ("I64", (classes,))}
    tensors["source_index"] = ("I64", (total,))
    path = folder / "large.fdm"
    with path.open("wb") as file:
        file.write(header_bytes(metadata, tensors, 1 << 15))
        file.seek(total * 3 * 64 * 64, os.SEEK_CUR)
        file.write(b"[]".ljust(8) + np.arange(0, total + 1, CLASS_SIZE, dtype=np.int64).tobytes())
        file.truncate(file.tell() + 8 * (classes + total))
    opened, drawn, most, rate = apart(_large, path)
    path.unlink()
    yield row("ImageNet-1K at 64x64, 15.7 GB: seconds to open", [opened], 0.1, at_most=True)
    yield row("ImageNet-1K at 64x64: seconds to draw 256 of every class", [drawn], 0.1, at_most=True)
    name = "ImageNet-1K at 64x64: GB resident besides the page cache while streaming"
    note = "the file is a hole: its rate is not that of a disk"
    yield row(name, [most / 1e9], 1.0, at_most=True, images_per_second=round(rate), note=note)


# --- all of it, table and plot ---------------------------------------------------------------------------------------


JPEGS = (("tinyimagenet20/train", "JPEGs of 64x64", 200.0), ("imagenet_samples", "JPEGs of about 500x375", 2000.0))


def measure(data_path: Path, repeats: int, file_bytes: int) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for side in (64, 32):
            path = random_set(folder, side, file_bytes)
            for workers in (1, 2):
                yield from warm(path, side, repeats, workers)
            yield public(path, side, repeats)
            if side == 64:
                for name, what, target in JPEGS:
                    if (data_path / name).is_dir():
                        yield loader(data_path / name, what, path, target)
                yield from cold(path, repeats)
            path.unlink()
        if files := sorted((data_path / "imagenet_samples").glob("*/*")):
            yield from packing(files, repeats)
        yield from large(folder)


def _ratios(result: Result) -> Any:
    """Ratios with their targets; rows without a baseline are limits, and stay in the table."""
    rows = [row for row in result["rows"] if row["ratio"]["n"] > 1]
    series = plots.Series("", "ratio.median", plots.OURS)
    drawn = plots.bars(result, rows, [series], "times as fast", log=True, row_inches=0.24)
    if drawn is not None:
        (axes,) = drawn.axes
        targets = [(row["target"], place) for place, row in enumerate(rows) if row["target"] is not None]
        axes.scatter(*zip(*targets, strict=True), marker="|", s=90, color=plots.OTHER, label="target")
        axes.axvline(1, color=plots.LINE, lw=0.8)
        axes.legend(loc="lower right")
    return drawn


SUITE = Suite(
    "loading",
    "Loading",
    "How many times as fast as what the row's name says, median (p20–p80) of interleaved runs, and the target; rows in "
    "seconds or GB are limits.",
    ("csrc", "data"),
    """
    what | name; ratio | ratio | spread; target | target | .3g; met
    images/s | images_per_second | ,.0f; baseline, images/s | baseline_images_per_second | ,.0f; note
    """,
    plots={"ratios": _ratios},
)


def main() -> None:
    options = arguments.parser(__doc__, "--data_path").parse_args()
    if native() is None:
        raise SystemExit("fastdm was installed without its C++ core, which is what this measures")
    size = SIZES["smoke" if options.smoke else "full"]
    about = {"drawn": DRAWN, "file_bytes": size[1], "repeats": size[0]}
    records.record(SUITE, options, lambda options: measure(options.data_path, *size), **about)


if __name__ == "__main__":
    main()
