"""The figures of a report: what is drawn of runs, as inline SVG for the page and as PNG for papers."""

import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

from markupsafe import Markup

from fastdm.applications.line_plot import check_matplotlib, write_lines
from fastdm.applications.report.published import WHOLE_SET, published_accuracy
from fastdm.applications.report.reading import RunRecord
from fastdm.applications.report.svg import Line, Point, bar_chart, line_chart, number_text, point_chart
from fastdm.evaluation.outcome import Evaluation
from fastdm.networks.architectures import default_network
from fastdm.system.files import make_folder

BINS = 200
"""Points of a loss curve, at most: each is the mean of as many iterations."""

MARKS = {"condensed": "circle", "random real images": "square", "whole set": "triangle", "published DM": "diamond"}
"""What is compared in the accuracy chart, with its mark; the number of the mark's colour is its place."""


def loss_lines(records: Sequence[RunRecord]) -> list[Line]:
    """The loss of every run: means over bins of iterations, with one standard deviation to each side."""
    lines = []
    for number, record in enumerate(records):
        size = -(-len(record.losses) // BINS)
        bins = [record.losses[start : start + size] for start in range(0, len(record.losses), max(1, size))]
        if not bins:
            continue
        x = [statistics.fmean(iteration for iteration, _ in part) for part in bins]
        means = [statistics.fmean(loss for _, loss in part) for part in bins]
        # A bin of few iterations says little of the spread: take the neighbours in.
        wide = [[loss for part in bins[max(0, i - 4) : i + 5] for _, loss in part] for i in range(len(bins))]
        spread = [statistics.pstdev(losses) for losses in wide]
        low = [mean - s for mean, s in zip(means, spread, strict=True)]
        high = [mean + s for mean, s in zip(means, spread, strict=True)]
        lines.append(Line(record.name, number, x, means, low, high))
    return lines


def accuracy_lines(records: Sequence[RunRecord]) -> list[Line]:
    """The accuracy in percent during every run that was evaluated on the way, with its end: mean and spread of the
    networks of the architecture that was condensed with."""
    lines = []
    for number, record in enumerate(records):
        points = record.during + ([(record.iterations, record.evaluation)] if record.evaluation.accuracies else [])
        own = [(i, _own(record, evaluation)) for i, evaluation in points]
        kept = {i: values for i, values in own if values}
        if len(kept) < 2:
            continue
        means = [100 * statistics.fmean(values) for values in kept.values()]
        stds = [100 * statistics.pstdev(values) for values in kept.values()]
        low = [mean - std for mean, std in zip(means, stds, strict=True)]
        high = [mean + std for mean, std in zip(means, stds, strict=True)]
        lines.append(Line(record.name, number, list(kept), means, low, high))
    return lines


def _own(record: RunRecord, evaluation: Evaluation) -> list[float]:
    values = evaluation.accuracies
    return values.get(str(record.settings.get("network"))) or next(iter(values.values()), [])


def compared(record: RunRecord) -> Iterator[tuple[str, dict[str, tuple[float, float | None]]]]:
    """For each network, (mean, standard deviation) in percent of what is compared: see `MARKS`.

    Published figures are those of the protocol dm, and stand next to no other's.
    """
    for network, values in record.evaluation.accuracies.items():
        found: dict[str, tuple[float, float | None]] = {"condensed": _percent(values)}
        for name, evaluation in record.baselines.items():
            if network in evaluation.accuracies:
                found[name] = _percent(evaluation.accuracies[network])
        if network == default_network(record.image_shape) and record.protocol_name == "dm":
            published = published_accuracy(record.dataset, record.ipc)
            if published is not None:
                found["published DM"] = published
            if record.dataset in WHOLE_SET:
                found["published whole set"] = WHOLE_SET[record.dataset]
        yield network, found


def _percent(values: Sequence[float]) -> tuple[float, float]:
    return 100 * statistics.fmean(values), 100 * statistics.pstdev(values)


def loss_chart(records: Sequence[RunRecord]) -> Markup | None:
    lines = loss_lines(records)
    return _curves("Loss over the iterations", "mean loss per class", lines) if lines else None


def accuracy_curves(records: Sequence[RunRecord]) -> Markup | None:
    lines = accuracy_lines(records)
    return _curves("Accuracy over the iterations", "test accuracy, %", lines) if lines else None


def _curves(title: str, y_label: str, lines: Sequence[Line]) -> Markup:
    ends = "; ".join(f"{line.name}: from {number_text(line.mean[0])} to {number_text(line.mean[-1])}" for line in lines)
    return line_chart(title, ends, "iteration", y_label, lines)


def accuracy_chart(records: Sequence[RunRecord]) -> Markup | None:
    """What is compared, a row for each run and network."""
    rows = []
    for record in records:
        for network, found in compared(record):
            points = [
                Point(name, *found[name], mark, number)
                for number, (name, mark) in enumerate(MARKS.items())
                if name in found
            ]
            rows.append((f"{record.name}, {network}", points))
    if not rows:
        return None
    text = "; ".join(f"{name}: " + ", ".join(f"{p.name} {p.value:.1f}" for p in points) for name, points in rows)
    return point_chart("Test accuracy in percent", text, "test accuracy, %", rows)


def time_chart(record: RunRecord) -> Markup | None:
    """Where an iteration's time goes, if it was profiled."""
    split = record.profile.get("split")
    if not isinstance(split, dict) or not split:
        return None
    bars = [(str(kind), 1000 * float(seconds), 0) for kind, seconds in split.items()]
    if "waiting_seconds" in record.profile:
        bars.append(("waiting for real images", 1000 * float(record.profile["waiting_seconds"]), 1))
    text = ", ".join(f"{kind} {number_text(value)} ms" for kind, value, _ in bars)
    return bar_chart("Time of an iteration by kind of work", text, "ms", bars)


def memory_chart(record: RunRecord) -> Markup | None:
    """What the plan allowed for, and the most that was measured."""
    names = {
        "pool_bytes": "planned: real images",
        "images_bytes": "planned: synthetic images, momentum",
        "networks_bytes": "planned: networks",
        "real_bytes": "planned: pass of real images",
        "synthetic_bytes": "planned: pass of synthetic images",
    }
    planned = [(text, record.about.plan[name] / 2**20, 0) for name, text in names.items() if name in record.about.plan]
    if not planned:
        return None
    bars = [("planned in all", sum(value for _, value, _ in planned), 0), *planned]
    if record.about.peak_bytes is not None:
        bars.insert(0, ("measured peak", record.about.peak_bytes / 2**20, 1))
    text = ", ".join(f"{name} {number_text(value)} MiB" for name, value, _ in bars)
    return bar_chart("Memory, planned and measured", text, "MiB", bars)


def write_png(records: Sequence[RunRecord], folder: Path) -> list[Path]:
    """The curves, the accuracies and the sets as PNG files for papers; returns their paths."""
    check_matplotlib()
    make_folder(folder)
    written = []
    for name, label, lines in (
        ("loss", "mean loss per class", loss_lines(records)),
        ("accuracy", "test accuracy, %", accuracy_lines(records)),
    ):
        if lines:
            written.append(folder / f"{name}.png")
            write_lines(written[-1], "iteration", label, lines)
    for number, record in enumerate(records, 1):
        if record.synthetic is not None:
            written.append(folder / f"images_{number}.png")
            record.synthetic.save_picture(written[-1])
    return written
