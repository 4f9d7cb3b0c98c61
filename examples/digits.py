"""Condense scikit-learn's handwritten digits to one image per class, and see how good they are.

python -m examples.digits
"""

from pathlib import Path

from rich.console import Console
from rich.table import Table

import fastdm

FOLDER = Path("result/digits")


def main() -> None:
    digits = fastdm.open_dataset("digits")
    condensed = fastdm.condense(
        digits,
        ipc=1,
        iterations=300,
        batch_real=100,
        save_path=FOLDER,
        overwrite=True,
        progress=True,
    )

    candidates = {
        "condensed": condensed,
        "as many random real images": fastdm.random_selection(digits, ipc=1, seed=0),
        "the whole set": fastdm.whole_set(digits),
    }
    table = Table("training images", "number", "test accuracy %", title="ConvNet, mean ± std over 3 networks")
    for name, images in candidates.items():
        epochs = 10 if name == "the whole set" else 300  # its epochs have far more steps
        evaluation = fastdm.evaluate(images, digits, num_eval=3, epochs=epochs, progress=True)
        mean, std = evaluation.mean["ConvNet"], evaluation.std["ConvNet"]
        table.add_row(name, str(len(images)), f"{100 * mean:.1f} ± {100 * std:.1f}")

    console = Console()
    console.print(table)
    console.print(f"picture  {FOLDER / 'synthetic.png'}")
    console.print(f"set      {FOLDER / 'synthetic.safetensors'}")


if __name__ == "__main__":
    main()
