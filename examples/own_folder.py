"""Condense a folder of your own images, one folder for each class, and give the result to others as PNG files.

python -m examples.own_folder path/to/images out

The images may be of any size: they are brought to one. Without arguments, a folder of small pictures is made first.
"""

import sys
from pathlib import Path

import torch
from PIL import Image

import fastdm


def main(folder: str | None = None, out: str = "result/own_folder", iterations: int = 100, size: int = 32) -> Path:
    """Returns the folder of PNG files."""
    if folder is None:
        folder = f"{out}/pictures"
        make_pictures(Path(folder))
    data = fastdm.open_dataset(folder, image_size=size)
    print(f"{data.name}: {data.num_classes} classes, {len(data.train)} images brought to {size}x{size}")

    # Fewer images in a class than batch_real are all used in each iteration.
    synthetic = fastdm.condense(data, ipc=2, iterations=iterations, batch_real=64, progress=True)
    synthetic.save(f"{out}/set.safetensors")
    exported = fastdm.export(synthetic, f"{out}/png")
    print(f"wrote {exported.path}; {exported}")
    return exported.path


def make_pictures(folder: Path, each: int = 20) -> None:
    """Two classes that anyone can tell apart: discs and squares, of different sizes and shades."""
    generator = torch.Generator().manual_seed(0)
    for name in ("discs", "squares"):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(each):
            side = 24 + 2 * number
            y, x = torch.meshgrid(torch.linspace(-1, 1, side), torch.linspace(-1, 1, side), indexing="ij")
            inside = (x.square() + y.square() if name == "discs" else torch.maximum(x.abs(), y.abs())) < 0.6
            shade = torch.rand(2, 3, generator=generator)
            pixels = torch.where(inside[..., None], shade[0], shade[1])
            Image.fromarray((255 * pixels).to(torch.uint8).numpy()).save(folder / name / f"{number:02}.png")


if __name__ == "__main__":
    main(*sys.argv[1:3])
