"""Options that several commands share, and what their values mean."""

from pathlib import Path
from typing import Annotated

import typer

from fastdm.errors import FastDMError

SOURCE = (
    "MNIST, FashionMNIST, SVHN, CIFAR10, CIFAR100, TinyImageNet, digits, a folder of class folders, an .npz file or a "
    "packed set."
)

NETWORKS = "ConvNet, ConvNetD4, ConvNetBN, MLP, LeNet, AlexNet, VGG11, ResNet18, …; an unknown name lists all."

Dataset = Annotated[str, typer.Option("--dataset", help=SOURCE)]

DataPath = Annotated[Path, typer.Option("--data_path", help="Where named data sets are, or are downloaded to.")]

ImageSize = Annotated[
    int | None, typer.Option("--image_size", min=1, help="Side to bring the images of a folder of image files to.")
]

Epochs = Annotated[int, typer.Option("--epoch_eval_train", help="Epochs of each evaluation's training.")]

LrNet = Annotated[float, typer.Option("--lr_net", help="Learning rate of the evaluation's networks.")]

BatchTrain = Annotated[
    int | None,
    typer.Option("--batch_train", help="Batch size of the evaluation's training.  [default: dm 256, idc 64]"),
]

ProtocolName = Annotated[
    str,
    typer.Option("--protocol", help="How networks are trained to evaluate: dm, as in DM's paper; idc, as in IDC's."),
]

Checks = Annotated[
    int,
    typer.Option(
        "--checks", min=1, help="Tests during each evaluation's training; the best is printed beside the last."
    ),
]

Cutmix = Annotated[bool, typer.Option("--cutmix/--no_cutmix", help="Mix boxes of two images in half of the batches.")]

Seed = Annotated[int, typer.Option("--seed", help="Every random draw follows from it.")]

Model = Annotated[
    str | None,
    typer.Option("--model", help=f"Network to match in: {NETWORKS}  [default: ConvNet, deeper above 32 pixels]"),
]

EvalMode = Annotated[
    str, typer.Option("--eval_mode", help="Networks to evaluate with: SS (the model itself), S, M, B, W, D, A, P, N.")
]

Ipc = Annotated[int, typer.Option("--ipc", help="Synthetic images per class.")]

BatchReal = Annotated[int, typer.Option("--batch_real", help="Real images per class and update.")]

PrecisionOption = Annotated[
    str | None, typer.Option("--precision", help="fp32, tf32 or bf16.  [default: the fastest of equal accuracy]")
]

Backend = Annotated[str, typer.Option("--backend", help="Op backend: auto, triton or reference.")]

ChunkMemory = Annotated[
    int | None,
    typer.Option("--chunk_memory", min=1, help="MiB that one chunk of classes may take.  [default: what is free]"),
]

Device = Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:1, …  [default: a GPU if there is one]")]


def iteration_range(text: str | None) -> range | None:
    """The range that "100-102", or "100", means."""
    if text is None:
        return None
    first, _, last = text.partition("-")
    if not (first.isdecimal() and (last or first).isdecimal()):
        raise FastDMError(f"profile is {text!r}; it must be an iteration or the first and the last, such as 100-102")
    return range(int(first), int(last or first) + 1)


def mebibytes(count: int | None) -> int | None:
    return None if count is None else count << 20
