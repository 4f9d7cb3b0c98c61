"""`fastdm report`."""

from pathlib import Path
from typing import Annotated

import typer

from fastdm.cli.flags import SOURCE, DataPath, Device, ImageSize
from fastdm.cli.output import print_saved
from fastdm.errors import FastDMError
from fastdm.system.files import user_path


def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN", help="Run folders that condense wrote, or folders of such folders.")
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", parser=user_path, metavar="FILE", help="The page to write.")
    ] = Path("report.html"),
    dataset: Annotated[
        str | None,
        typer.Option("--dataset", help=f"Whose real images to show: {SOURCE}  [default: the one that the run names]"),
    ] = None,
    data_path: DataPath = Path("data"),
    image_size: ImageSize = None,
    baselines: Annotated[
        bool,
        typer.Option(
            "--baselines",
            help="First evaluate as many random real images and the whole set, by the run's protocol; the accuracies "
            "are kept in its folder.",
        ),
    ] = False,
    epoch_whole_set: Annotated[
        int | None,
        typer.Option(
            "--epoch_whole_set",
            min=1,
            help="Epochs of the whole-set baseline.  [default: those of the run's evaluation, at most 200]",
        ),
    ] = None,
    png: Annotated[
        Path | None,
        typer.Option(
            "--png", parser=user_path, metavar="FOLDER", help="Folder for the figures as PNG files, as for a paper."
        ),
    ] = None,
    device: Device = None,
) -> None:
    """Write a page that shows runs, several side by side: one HTML file that opens without a network.

    It shows loss and accuracy, the synthetic images over the iterations next to real ones, time and memory, settings,
    and the command that repeats each run.
    """
    from fastdm.applications.measured_file import check_writable
    from fastdm.applications.report.baselines import measure_baselines
    from fastdm.applications.report.page import MARK, write_report
    from fastdm.applications.report.reading import find_runs, read_run
    from fastdm.data.sources import open_dataset
    from fastdm.system.device import default_device

    check_writable(out, MARK)
    if baselines:
        for folder in find_runs(runs):
            record = read_run(folder)
            try:
                data = open_dataset(dataset or record.dataset, data_path=data_path, image_size=image_size)
            except FastDMError as error:
                if dataset is not None:
                    raise
                raise FastDMError(f"{error}; name the run's data set (--dataset)") from error
            measure_baselines(record, data, default_device(device), epochs=epoch_whole_set, progress=True)
    for path in write_report(runs, out, dataset=dataset, data_path=data_path, image_size=image_size, png=png):
        print_saved(path)
