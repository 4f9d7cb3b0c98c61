"""A report as one HTML file that needs nothing else: no network, no folder next to it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from fastdm.applications.report import figures, svg
from fastdm.applications.report.command import repeating_command
from fastdm.applications.report.reading import RunRecord, find_runs, read_run
from fastdm.applications.report.sheets import Frames, real_frames, synthetic_frames
from fastdm.data.pool import Dataset
from fastdm.data.sources import open_dataset
from fastdm.errors import FastDMError
from fastdm.synthetic.synthetic_set import check_compatible
from fastdm.system.files import user_path, writing
from fastdm.version import __version__

PICTURE_BYTES = 11_000_000
"""The most bytes that the pictures of a page take. Base64 makes four bytes of three, so a page stays below 20 MB."""

MARK = '<meta name="generator" content="fastdm '
"""What tells a page from other files."""

COLOURS = 6
"""Runs that a page can tell apart by colour and dash."""

_templates = jinja2.Environment(
    loader=jinja2.PackageLoader("fastdm.applications.report", "template"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


@dataclass(frozen=True)
class RunView:
    """What the page shows of a run; real_note: why there are no real examples next to its images."""

    record: RunRecord
    frames: Frames | None
    real: Frames | None
    real_note: str
    command: str
    time: Markup | None
    memory: Markup | None


def write_report(
    runs: Sequence[str | Path],
    path: str | Path,
    *,
    dataset: str | Dataset | None = None,
    data_path: str | Path = "data",
    image_size: int | None = None,
    png: str | Path | None = None,
) -> list[Path]:
    """Write a page on one or more runs, side by side; returns what was written, the page first.

    runs: run folders, or folders of run folders. dataset: where the real images are that are shown next to the
    synthetic ones, by default the data set that a run names, looked up under data_path if that is there. png: folder
    for the figures as PNG files.

    Raises FastDMError for folders without runs, for more than `COLOURS` runs, and for damaged files.
    """
    path = user_path(path)
    folders = find_runs([Path(run) for run in runs])
    if len(folders) > COLOURS:
        raise FastDMError(f"{len(folders)} runs do not fit on a page; name at most {COLOURS} run folders")
    records = [read_run(folder, name) for folder, name in zip(folders, _names(folders), strict=True)]
    page = render(records, dataset=dataset, data_path=user_path(data_path), image_size=image_size)
    with writing(path) as temporary:
        # A file name that is not UTF-8 may be in it.
        temporary.write_text(page, encoding="utf-8", errors="backslashreplace")
    return [path, *(figures.write_png(records, user_path(png)) if png is not None else [])]


def report_of(result: Path, folders: Sequence[Path], dataset: Dataset) -> Path:
    """Write the page that goes with a `res_DM_….pt`, next to it: its first runs, as many as fit. Returns its path."""
    path = result.with_name(f"report_{result.stem.removeprefix('res_')}.html")
    write_report(folders[:COLOURS], path, dataset=dataset)
    return path


def render(
    records: Sequence[RunRecord],
    *,
    dataset: str | Dataset | None = None,
    data_path: Path = Path("data"),
    image_size: int | None = None,
) -> str:
    """The page on these runs as HTML."""
    opened: dict[str, Dataset | str] = {}
    views = []
    for record in records:
        if record.dataset not in opened:
            opened[record.dataset] = _open(record, dataset, data_path, image_size)
        views.append(_view(record, opened[record.dataset], PICTURE_BYTES // len(records)))
    iterations = sorted({number for view in views if view.frames for number, _ in view.frames.sheets})
    return _templates.get_template("page.html").render(
        views=views,
        svg=svg,
        figures=figures,
        loss=figures.loss_chart(records),
        losses=dict.fromkeys(record.loss_is for record in records),
        accuracy_curves=figures.accuracy_curves(records),
        accuracy=figures.accuracy_chart(records),
        drawn={name for record in records for _, found in figures.compared(record) for name in found},
        settings=_settings(records),
        iterations=iterations,
        frames=Markup(_json({"iterations": iterations, "runs": [_recorded(view.frames) for view in views]})),
        number=svg.number_text,
        version=__version__,
    )


def _open(record: RunRecord, dataset: str | Dataset | None, data_path: Path, image_size: int | None) -> Dataset | str:
    """The data set of a run, or why it cannot be shown."""
    if dataset is None and not data_path.is_dir() and record.dataset != "digits":  # which scikit-learn brings
        return f"there is no folder {data_path} to look for {record.dataset} in"
    try:
        opened = open_dataset(dataset or record.dataset, data_path=data_path, image_size=image_size)
        check_compatible(f"the run {record.name}", len(record.class_names), record.image_shape, opened)
    except FastDMError as error:
        if dataset is not None:
            raise
        return str(error)
    return opened


def _view(record: RunRecord, dataset: Dataset | str, budget: int) -> RunView:
    data = None if isinstance(dataset, str) else dataset
    frames = synthetic_frames(record, data, budget * 5 // 6)
    shown = frames.layout.images if frames else 1
    return RunView(
        record=record,
        frames=frames,
        real=None if data is None else real_frames(data, shown, budget // 6),
        real_note=dataset if isinstance(dataset, str) else "",
        command=repeating_command(record),
        time=figures.time_chart(record),
        memory=figures.memory_chart(record),
    )


def _names(folders: Sequence[Path]) -> list[str]:
    """The folders' names; with those above them where two are the same."""
    resolved = [folder.resolve() for folder in folders]
    depth = 1
    while len({path.parts[-depth:] for path in resolved}) < len(resolved):
        depth += 1
    return ["/".join(path.parts[-depth:]) for path in resolved]


def _settings(records: Sequence[RunRecord]) -> list[tuple[str, list[str], bool]]:
    """(name, value in each run, whether they differ) of every setting."""
    names = dict.fromkeys(name for record in records for name in record.settings)
    rows = [(name, [_text(record.settings.get(name)) for record in records]) for name in names]
    return [(name, values, len(set(values)) > 1) for name, values in rows]


def _text(value: Any) -> str:
    if value is None:
        return "default"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _recorded(frames: Frames | None) -> dict[str, Any]:
    """What the slider needs: the last sheet is in the page's style already."""
    sheets = frames.sheets if frames else []
    return {"at": [number for number, _ in sheets], "sheets": [url for _, url in sheets[:-1]]}


def _json(content: Any) -> str:
    """JSON that can stand in a script element."""
    return json.dumps(content, separators=(",", ":")).replace("<", "\\u003c")
