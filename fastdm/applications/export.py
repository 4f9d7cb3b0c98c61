"""Give a condensed set to others: as a folder of PNG files, as arrays, or as the public code's file."""

import json
import os
import shutil
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from fastdm.data.normalisation import per_channel
from fastdm.errors import FastDMError
from fastdm.synthetic.public_file import labels_of
from fastdm.synthetic.synthetic_set import Format, SyntheticSet, save_public
from fastdm.system.checks import parse_json
from fastdm.system.files import reason, user_path, writing

ABOUT = "about.json"
"""In an exported folder: what is needed to use the set as fastdm does."""


@dataclass(frozen=True)
class Exported:
    """path: what was written; values: pixel values of the set; clipped: those beyond [0, 1], which 8 bits cannot hold
    (the files of condensed sets keep them as well); soft_labels: whether the set has some, which stay behind."""

    path: Path
    values: int
    clipped: int
    soft_labels: bool

    def __str__(self) -> str:
        share = 100 * self.clipped / self.values
        soft = "; soft labels are left out" if self.soft_labels else ""
        many = f"{self.clipped:,} of {self.values:,} pixel values ({share:.2g} %)"
        return f"{many} lie beyond black or white, where 8 bits clip them{soft}"


def export(
    synthetic: SyntheticSet | str | Path, out: str | Path, *, format: Format | None = None, overwrite: bool = False
) -> Exported:
    """Write a condensed set in a form that needs no fastdm; `open_dataset` reads each of them, as 8-bit pixels.

    synthetic: the set, or the file of one. out says by its suffix what is written:

    - none: a folder of PNG files, a folder for each class, as torchvision's `ImageFolder` takes it, with `about.json`
      (mean, std, class names, settings). Class folders are named after the classes if those are valid file names
      that sort in the order of the labels; else the label is put in front. Read back, images have 3 channels.
    - `.npz`: `x_train`, uint8 [N, H, W, C], and `y_train`, int64 [N];
    - `.safetensors`: fastdm's own file, which keeps everything;
    - `.pt`: what `SyntheticSet.save` writes, the public code's `{"data": [[images, labels]], "accs_all_exps": {}}`,
      normalised float32, and with them `classes`, `images_train` (uint8 [N, C, H, W]) and `labels_train`, as its data
      set files have them.

    format: "public", "mtt", "idc" or "safetensors", in place of that: what `SyntheticSet.save` writes by this name.

    overwrite: replace what is there already, a file or the folder of an earlier export.

    Images with a partition are decoded, and labels are hard. 8-bit pixels are de-normalised, clipped to [0, 1] and
    rounded. Raises FastDMError for another suffix, for what is there already, and for what cannot be read or written.

    >>> import fastdm, tempfile
    >>> synthetic = fastdm.random_selection("digits", ipc=2)
    >>> exported = fastdm.export(synthetic, tempfile.mkdtemp() + "/digits.npz")
    >>> exported.clipped, len(fastdm.open_dataset(exported.path).train)
    (0, 20)
    """
    if not isinstance(synthetic, SyntheticSet):
        synthetic = SyntheticSet.load(synthetic)
    out = user_path(out)
    for target in (out, labels_of(out)) if format == "mtt" else (out,):
        if os.path.isfile(target) and not overwrite:  # a name that no file can have is no file
            raise FastDMError(f"{target} is there already: overwrite it, or choose another (--overwrite)")
    if format is not None or out.suffix.lower() == ".safetensors":
        synthetic.save(out, format=format or "safetensors")
        return _exported(out, synthetic, keeps_soft_labels=format in (None, "safetensors"))
    synthetic = synthetic.expand()
    writers: dict[str, Callable[[SyntheticSet, Path], None]] = {
        "": partial(_write_folder, overwrite=overwrite),
        ".npz": _write_npz,
        ".pt": _write_pt,
    }
    if out.suffix.lower() not in writers:
        raise FastDMError(f"{out} ends in {out.suffix}; it must be a folder, or end in .npz, .pt or .safetensors")
    writers[out.suffix.lower()](synthetic, out)
    return _exported(out, synthetic)


def _exported(out: Path, synthetic: SyntheticSet, *, keeps_soft_labels: bool = False) -> Exported:
    left_out = synthetic.soft_labels is not None and not keeps_soft_labels
    return Exported(out, synthetic.images.numel(), count_clipped(synthetic), left_out)


def count_clipped(synthetic: SyntheticSet) -> int:
    """How many pixel values lie further beyond [0, 1] than rounding to 8 bits hides."""
    mean, std = (per_channel(values) for values in (synthetic.mean, synthetic.std))
    values = synthetic.images.detach().cpu() * std + mean
    return int(((values < -0.5 / 255) | (values > 1 + 0.5 / 255)).sum())


def rounded(synthetic: SyntheticSet) -> SyntheticSet:
    """The set as it is after 8-bit pixels: clipped and rounded."""
    mean, std = (per_channel(values) for values in (synthetic.mean, synthetic.std))
    return replace(synthetic, images=(synthetic.pixels().float() / 255 - mean) / std)


def class_folders(class_names: Sequence[str]) -> list[str]:
    """A folder name for every class, such that their order is that of the labels."""
    names = [unicodedata.normalize("NFC", name) for name in class_names]
    if [*names] == sorted(set(names)) and all(_is_file_name(name) for name in names):
        return names
    digits = len(str(len(names) - 1))
    return [f"{label:0{digits}}_{_as_file_name(name)}" for label, name in enumerate(names)]


def _is_file_name(name: str) -> bool:
    return bool(name) and name == _as_file_name(name) and not name.startswith((".", "__"))


def _as_file_name(name: str) -> str:
    """The name without what some file system does not allow, and not too long for one."""
    allowed = "".join("-" if c in '/\\:*?"<>|' or not c.isprintable() else c for c in name).strip(" .")
    return allowed.encode()[:200].decode(errors="ignore")


def _write_folder(synthetic: SyntheticSet, out: Path, overwrite: bool) -> None:
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            if not _is_export(out):
                raise FastDMError(f"{out} is there already and is not an empty folder; choose another")
            if not overwrite:
                raise FastDMError(f"{out} is there already: overwrite it, or choose another (--overwrite)")
        if out.exists() and out.samefile("."):  # the folder is replaced by one that is complete
            raise FastDMError(f"{out} is the current folder; name a new one in it")
        out = Path(os.path.realpath(out))  # a link is followed, as to a file
    except OSError as error:
        raise FastDMError(f"{out} cannot be written: {reason(error)}") from error
    unfinished, replaced = (out.with_name(f".{out.name}.{what}") for what in ("unfinished", "replaced"))
    folders = class_folders(synthetic.class_names)
    pixels = synthetic.pixels()
    digits = len(str(synthetic.ipc - 1))
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        for label, folder in enumerate(folders):
            (unfinished / folder).mkdir(parents=True)
            for number in range(synthetic.ipc):
                image = pixels[label * synthetic.ipc + number].movedim(0, -1).squeeze(-1)
                Image.fromarray(image.contiguous().numpy()).save(unfinished / folder / f"{number:0{digits}}.png")
        about = {**synthetic.summary(), "folders": folders, "clipped": count_clipped(synthetic)}
        text = json.dumps(about, indent=2, ensure_ascii=False) + "\n"
        # Names of folders that are not UTF-8, as JSON writes them.
        (unfinished / ABOUT).write_text(text, encoding="utf-8", errors="backslashreplace")
        if out.exists():
            shutil.rmtree(replaced, ignore_errors=True)
            out.rename(replaced)
        unfinished.rename(out)
        shutil.rmtree(replaced, ignore_errors=True)
    except OSError as error:
        raise FastDMError(f"{out} cannot be written: {reason(error)}") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _is_export(folder: Path) -> bool:
    """Whether a folder holds an exported set, and nothing else."""
    try:
        folders = parse_json((folder / ABOUT).read_bytes())["folders"]
        return {each.name for each in folder.iterdir()} == {ABOUT, *folders}
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _write_npz(synthetic: SyntheticSet, out: Path) -> None:
    images = synthetic.pixels().movedim(1, -1).contiguous().numpy()
    with writing(out) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, x_train=images, y_train=synthetic.labels.numpy())


def _write_pt(synthetic: SyntheticSet, out: Path) -> None:
    pixels, labels = synthetic.pixels(), synthetic.labels
    more = {"classes": [*synthetic.class_names], "images_train": pixels, "labels_train": labels}
    save_public([synthetic], out, more=more)
