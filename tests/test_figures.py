"""Figures in the prose of the documents are those of the records under bench/results, as far as they are printed."""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
H200, EPYC, XEON = "intel-xeon--nvidia-h200", "amd-epyc--cpu", "intel-xeon--cpu"
Row = dict[str, Any]


def rows(record: str, **wanted: Any) -> list[Row]:
    """Those rows of a record that have these values."""
    found = json.loads((ROOT / f"bench/results/{record}.json").read_text())["rows"]
    return [row for row in found if all(row.get(name) == value for name, value in wanted.items())]


def mean(record: str, key: str = "idc", **wanted: Any) -> float:
    return fmean(row[key] for row in rows(record, **wanted))


def reached(machine: str, name: str, *rungs: str) -> list[float]:
    """Test accuracies under the protocol idc, mean over the sets."""
    return [mean(f"accuracy--{machine}", name=name, rung=rung, validation=False) for rung in rungs]


def recipe() -> list[float]:
    found = [
        rows(f"accuracy--{H200}", name=f"CIFAR10 ipc {ipc}, 10000 iterations", rung="trained")[0] for ipc in (1, 10, 50)
    ]
    return [row["idc"] for row in found] + [row["pool_seconds"] + row["condensation_seconds"] for row in found]


def swept(machine: str, name: str, lr: float, rates: Sequence[float]) -> list[float]:
    """By the weight of the cross-entropy, then by the learning rate, on images that were held out."""
    of = {"name": name, "rung": "trained", "validation": True}
    record = f"accuracy--{machine}"
    weights = [mean(record, lr_img=lr, ce_weight=weight, **of) for weight in (1.0, 2.5, 10.0)]
    return weights + [mean(record, lr_img=each, ce_weight=2.5, **of) for each in rates]


def bf16() -> list[float]:
    """Of sets condensed in bfloat16 and of trainings in it: difference to float32, and its standard error."""
    of = {
        precision: {row["seed"]: row["dm"] for row in rows(f"precision--{XEON}", precision=precision)}
        for precision in ("fp32", "bf16")
    }
    condensed = [of["bf16"][seed] - accuracy for seed, accuracy in of["fp32"].items()]
    trained = [row["trained_difference"] for row in rows(f"precision--{XEON}")]
    return [
        *(-fmean(condensed), stdev(condensed) / len(condensed) ** 0.5, -min(condensed), max(condensed)),
        *(-fmean(trained), stdev(trained) / len(trained) ** 0.5),
    ]


def compiled() -> list[float]:
    batch_norm, alexnet = (rows(f"step_compile--{EPYC}", name=name)[0] for name in ("ConvNetBN", "AlexNet"))
    return [batch_norm["compile_seconds"], alexnet["compile_seconds"], batch_norm["ratio"]]


def evaluations() -> list[float]:
    """Of three networks on 400 images for 1,000 epochs, and of the pool."""
    found = [row for row in rows(f"accuracy--{H200}", epochs=1000) if "ipc 10," in row["name"]]
    seconds = [row["idc_seconds"] for row in found if row["rung"] in ("partition", "trained")]
    return [min(seconds), max(seconds), rows(f"accuracy--{H200}", pool_epochs=20)[0]["pool_seconds"]]


def continual() -> list[float]:
    found = [rows(f"downstream--{EPYC}", name=f"{method}, 10 classes")[0] for method in ("DM", "herding", "random")]
    return [row[key] for row in found for key in ("mean", "std")]


def chunk() -> list[float]:
    seconds = rows(f"chunk--{H200}", name="fastdm bf16 graph")[0]["seconds"]["iteration"]["median"]
    return [1000 * seconds, 67 * seconds]


def runs_with_amx() -> list[float]:
    """Least and most times as fast, with 1 and with 10 images per class."""
    text = (ROOT / "bench/results/tuning/amx_step_runs.txt").read_text()
    found = [[float(ratio) for ratio in line.split()[2:]] for line in text.splitlines() if line.startswith("2026-")]
    assert len(found) == 8
    return [end(ratios) for ratios in zip(*found, strict=True) for end in (min, max)]


CLAIMS: list[tuple[str, str, Callable[[], list[float]]]] = [
    ("README.md", "reaches **{}, {} and {} %** and takes {}, {} and {} seconds on one H200", recipe),
    (
        "README.md",
        "real images on canvases alone reach {} %, DM {}, and DM with a partition {}.",
        lambda: reached(H200, "CIFAR10 ipc 10, 400 iterations", "initial canvases", "dm", "partition"),
    ),
    (
        "README.md",
        "add nothing to it ({}); with it they reach {} (weight 10: {}). A pool trained without cutmix is as good at "
        "this budget, or a little better ({}).",
        lambda: reached(
            *(H200, "CIFAR10 ipc 10, 400 iterations"),
            *("pool", "trained", "trained, weight 10", "trained, no cutmix"),
        ),
    ),
    (
        "README.md",
        "weights of 1, 2.5 and 10 give {}, {} and {} %, learning rates of 0.1, 0.2 and 0.4 give {}, {} and {} %;",
        lambda: swept(H200, "CIFAR10 ipc 10, 400 iterations", 0.2, (0.1, 0.2, 0.4)),
    ),
    (
        "README.md",
        "weights of 1, 2.5 and 10 give {}, {} and {} %, learning rates of 0.02, 0.05 and 0.1 give {}, {} and {} %.",
        lambda: swept(EPYC, "FashionMNIST ipc 1, 500 iterations", 0.05, (0.02, 0.05, 0.1)),
    ),
    (
        "README.md",
        "the means alone reach {} % in random networks and {} in trained ones with the cross-entropy, `mmd` {} and {}, "
        "`cov` {} and {}.",
        lambda: reached(
            *(EPYC, "FashionMNIST ipc 1, 500 iterations"),
            *("partition", "trained", "partition, mmd", "trained, mmd", "partition, cov", "trained, cov"),
        ),
    ),
    (
        "README.md",
        "are {} ± {} points (mean and standard error; \u2212{} to +{} for one seed) below those in float32, on AMX and "
        "without; training for the evaluation in bfloat16 costs another {} ± {} on AMX",
        bf16,
    ),
    ("README.md", "gave {} to {} times with 1 image per class and {} to {} with 10", runs_with_amx),
    ("README.md", "compiling took {} to {} seconds on a CPU, after which ConvNetBN ran {} times as fast", compiled),
    (
        "README.md",
        "beside another H200 it took {} ms",
        lambda: [1000 * rows(f"waterfall--{H200}", name="public")[0]["seconds"]["iteration"]["median"]],
    ),
    (
        "docs/evaluation.md",
        "and their test took {} to {} seconds ([bench/RESULTS.md](../bench/RESULTS.md#accuracy), column “evaluation, "
        "s”), and a pool of 2 networks \u00d7 20 epochs of CIFAR-10 took {} (column",
        evaluations,
    ),
    ("docs/evaluation.md", "DM reaches {} ± {} %, herding {} ± {} %, random real images {} ± {} %", continual),
    ("docs/imagenet.md", "take {} ms on an H200", lambda: chunk()[:1]),
    ("docs/imagenet.md", "67 such chunks take {} s", lambda: chunk()[1:]),
]


@pytest.mark.parametrize(("document", "sentence", "measured"), CLAIMS, ids=[claim[1][:40] for claim in CLAIMS])
def test_a_sentence_has_the_figures_of_the_record(
    document: str, sentence: str, measured: Callable[[], list[float]]
) -> None:
    text = " ".join((ROOT / document).read_text().split())
    found = re.search(re.escape(sentence).replace(r"\{\}", r"([\d.]+)"), text)
    assert found, f"{document} does not say {sentence!r}"
    for printed, value in zip(found.groups(), measured(), strict=True):
        digits = len(printed.partition(".")[2])
        assert abs(float(printed) - value) <= 0.5 * 10**-digits + 1e-9, f"{printed} is {value} in {found[0]!r}"


def test_the_iteration_is_as_much_faster_as_the_first_paragraph_says() -> None:
    assert "an iteration takes a fortieth of the public loop's time or less" in " ".join(
        (ROOT / "README.md").read_text().split()
    )
    for row in rows(f"step--{H200}"):
        seconds = {name: spread["median"] for name, spread in row["seconds"].items()}
        assert seconds["public"] >= 40 * seconds["fastdm"], row["name"]


def test_the_memory_is_as_close_to_its_plan_as_imagenet_md_says() -> None:
    text = " ".join((ROOT / "docs/imagenet.md").read_text().split())
    assert "the measured peak of the process is within 15 % of it" in text
    assert max(row["error"] for row in rows(f"scale--{EPYC}") if "error" in row) <= 0.15
    assert "only simulated, never takes more than 3 % above it" in text
    assert max(row["peak_mib"] / row["planned_mib"] for row in rows("fakegpu")) <= 1.03
