"""A folder laid out as ImageNet is, made of crops of a few photographs: to try docs/imagenet.md without ImageNet.

python -m examples.imagenet_stand_in OUT [--classes 10] [--each 60] [--photos FOLDER]

Every class is a region of a photograph, with crops of it as images: OUT/train/CLASS/*.JPEG, and OUT/val likewise. The
photographs are those of FOLDER, with all folders in it, or else the two that come with scikit-learn. What can be seen
on such a set is that the commands work, how long they take and how much memory: accuracies on it mean nothing.
"""

import argparse
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

SIDE = 96
"""Of the crops as they are stored; packing brings them to the wanted size."""


def photographs(folder: Path | None) -> list[Image.Image]:
    """The photographs of a folder, or those of scikit-learn, in RGB."""
    if folder is None:
        from sklearn.datasets import load_sample_images

        return [Image.fromarray(pixels) for pixels in load_sample_images().images]
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    return [Image.open(path).convert("RGB") for path in paths]


def crops(photo: Image.Image, draw: random.Random, count: int) -> Iterator[Image.Image]:
    """Overlapping crops of a random region of a photograph, half as wide and high as it is."""
    width, height = photo.width // 2, photo.height // 2
    left, top = draw.randrange(photo.width - width + 1), draw.randrange(photo.height - height + 1)
    for _ in range(count):
        side = draw.randint(min(width, height) // 2, min(width, height))
        x, y = left + draw.randint(0, width - side), top + draw.randint(0, height - side)
        yield photo.resize((SIDE, SIDE), Image.Resampling.BOX, (x, y, x + side, y + side))


def main(out: Path, classes: int = 10, each: int = 60, tests: int = 5, photos: Path | None = None) -> Path:
    """Write the folder: of every class `each` training images and `tests` others; returns it."""
    found: Sequence[Image.Image] = photographs(photos)
    for label in range(classes):
        draw = random.Random(label)
        images = crops(found[label % len(found)], draw, each + tests)
        for number, image in enumerate(images):
            folder = out / ("train" if number < each else "val") / f"n{label:08d}"
            folder.mkdir(parents=True, exist_ok=True)
            image.save(folder / f"{number}.JPEG", quality=90)
    return out


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--each", type=int, default=60)
    parser.add_argument("--tests", type=int, default=5)
    parser.add_argument("--photos", type=Path)
    options = parser.parse_args()
    print(main(options.out, options.classes, options.each, options.tests, options.photos))
