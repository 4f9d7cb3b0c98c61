"""`fastdm pack`."""

from pathlib import Path
from typing import Annotated, Any, cast

import typer

from fastdm.cli.flags import SOURCE, DataPath, OverwriteFile
from fastdm.cli.output import print_saved
from fastdm.system.files import user_path
from fastdm.system.text import printable


def pack(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help=SOURCE)],
    out: Annotated[Path, typer.Argument(parser=user_path, metavar="OUT", help="The file to write.")],
    size: Annotated[
        int | None,
        typer.Option("--size", help="Side of the packed images.  [default: 64 for image files, else theirs]"),
    ] = None,
    filter: Annotated[
        str, typer.Option("--filter", help="Pillow's filter for resizing: box, as for ImageNet64, bilinear, bicubic, …")
    ] = "box",
    fit: Annotated[
        str,
        typer.Option(
            "--fit", metavar="squash|center_crop", help="squash the whole image to a square, or center_crop it first."
        ),
    ] = "squash",
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Decoding threads.  [default: one per core]")
    ] = None,
    on_error: Annotated[
        str,
        typer.Option(
            "--on_error",
            metavar="raise|skip",
            help="An image that cannot be decoded: stop, or leave it out and list it.",
        ),
    ] = "raise",
    resume: Annotated[bool, typer.Option("--resume", help="Resume an interrupted pack.")] = False,
    overwrite: OverwriteFile = False,
    name: Annotated[str | None, typer.Option("--name", help="Name of the data set.  [default: the folder's]")] = None,
    data_path: DataPath = Path("data"),
) -> None:
    """Pack a data set into one file that opens in milliseconds: class-sorted uint8 images in safetensors layout."""
    from fastdm.data.packing import pack as pack_set

    packed = pack_set(
        source,
        out,
        size,
        cast(Any, filter),
        cast(Any, fit),
        workers,
        cast(Any, on_error),
        resume=resume,
        overwrite=overwrite,
        name=name,
        data_path=data_path,
        progress=True,
    )
    for file, why in packed.skipped:
        typer.echo(printable(f"skipped {file}: {why}"), err=True)
    print_saved(out)
