"""The options of the commands, and what their values mean."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from fastdm.errors import FastDMError
from fastdm.system.files import user_path

SOURCE = (
    "MNIST, FashionMNIST, SVHN, CIFAR10, CIFAR100, TinyImageNet, digits, a folder of class folders, an .npz or .pt "
    "file, or a packed set."
)

DEFAULT_IPC = 50
"""The public code's. (From Python it is that of `Settings`.)"""


def _path(path: str) -> Path:
    return user_path(path)


def a_path(flag: str, help: str) -> typer.models.OptionInfo:
    """An option for a file or a folder, with `~` expanded."""
    option: typer.models.OptionInfo = typer.Option(flag, parser=_path, metavar="PATH", help=help)
    return option


def a_choice(choices: dict[str, str]) -> Callable[[str], str]:
    """What reads one of some words, whatever its case; the words that it gives are the dictionary's values."""

    def read(text: str) -> str:
        if text.lower() not in choices:
            raise typer.BadParameter(f"{text!r} is not one of {', '.join(map(repr, dict.fromkeys(choices.values())))}.")
        return choices[text.lower()]

    return read


NETWORKS = "ConvNet, ConvNetD4, ConvNetBN, MLP, LeNet, AlexNet, VGG11, ResNet18, …; fastdm list networks shows all."

Dataset = Annotated[str, typer.Option("--dataset", help=SOURCE)]

Source = Annotated[
    str | None, typer.Argument(metavar="DATASET", help="The data set, as --dataset names it.", show_default=False)
]

Preset = Annotated[
    str | None,
    typer.Option(
        "--preset",
        help="Options for a known data set: cifar10, cifar100, tinyimagenet, imagenet64 or imagenet128; those on the "
        "command line and in --config take precedence.",
    ),
]

DataPath = Annotated[Path, a_path("--data_path", "Where named data sets are, or are downloaded to.")]

Config = Annotated[
    Path | None,
    a_path("--config", "YAML file of flags, such as config.yaml in a run folder; the command line takes precedence."),
]

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
    typer.Option(
        "--protocol",
        metavar="dm|idc",
        help="How networks are trained to evaluate: dm, as in DM's paper; idc, as in IDC's.",
    ),
]

Checks = Annotated[
    int,
    typer.Option(
        "--checks", min=1, help="Tests during each evaluation's training; the best is printed next to the last."
    ),
]

Cutmix = Annotated[bool, typer.Option("--cutmix/--no_cutmix", help="Mix boxes of two images in half of the batches.")]

Seed = Annotated[int, typer.Option("--seed", help="Every random draw follows from it.")]

Model = Annotated[
    str | None,
    typer.Option(
        "--model", "--network", help=f"Network to match in: {NETWORKS}  [default: ConvNet, deeper above 32 pixels]"
    ),
]

EvalMode = Annotated[
    str,
    typer.Option(
        "--eval_mode",
        metavar="SS|S|M|B|W|D|A|P|N",
        help="Networks to evaluate with: SS the model itself; S also with InstanceNorm for BatchNorm; M six "
        "architectures; B those with BatchNorm; ConvNets by W width, D depth, A activation, P pooling, N norm.",
    ),
]

Ipc = Annotated[int, typer.Option("--ipc", help="Synthetic images per class.")]

Method = Annotated[
    str,
    typer.Option(
        "--method",
        parser=a_choice({"dm": "DM"}),
        metavar="DM",
        help="DM only; the public code's other methods are not included.",
    ),
]

BatchReal = Annotated[int, typer.Option("--batch_real", help="Real images per class and update.")]

PrecisionOption = Annotated[
    str | None,
    typer.Option(
        "--precision",
        metavar="fp32|tf32|bf16",
        help="What networks compute in.  [default: the fastest that the device has without loss of accuracy]",
    ),
]

Backend = Annotated[str, typer.Option("--backend", metavar="auto|triton|reference", help="Implementation of the ops.")]

ChunkMemory = Annotated[
    int | None,
    typer.Option("--chunk_memory", min=1, help="MiB that one chunk of classes may take.  [default: what is free]"),
]


def _device(text: str) -> str:
    """The public code and others count GPUs: 1 is cuda:1."""
    return f"cuda:{text}" if text.isdecimal() else text


Device = Annotated[
    str | None,
    typer.Option(
        "--device", parser=_device, metavar="DEVICE", help="cpu, cuda, cuda:1 or 1, …  [default: a GPU if there is one]"
    ),
]


NumExp = Annotated[int, typer.Option("--num_exp", min=1, help="Sets to condense, with the seeds seed, seed + 1, …")]

NumEval = Annotated[
    int, typer.Option("--num_eval", min=0, help="Networks trained to evaluate each set; 0: no evaluation.")
]

Iteration = Annotated[int, typer.Option("--Iteration", "--iterations", help="Updates of the pixels.")]

LrImg = Annotated[
    float | None,
    typer.Option("--lr_img", help="Learning rate of the pixels.  [default: 1; CIFAR10 from ipc 100: 10]"),
]

Init = Annotated[str, typer.Option("--init", metavar="real|noise", help="What the synthetic images start from.")]

DsaStrategy = Annotated[
    str | None,
    typer.Option(
        "--dsa_strategy",
        "--strategy",
        help="Augmentations joined by _, or none.  [default: all six; digits are not flipped]",
    ),
]

SavePath = Annotated[Path, a_path("--save_path", "Folder for results.")]

DisMetric = Annotated[str, typer.Option("--dis_metric", help="Accepted and ignored, as in the public DM.")]

AugMode = Annotated[
    str,
    typer.Option(
        "--aug_mode",
        parser=str.upper,
        metavar="S|M",
        help="S: one augmentation per class and iteration; M: all of them.",
    ),
]

Momentum = Annotated[float, typer.Option("--momentum", help="Momentum of the SGD on the pixels.")]

Compile = Annotated[
    bool,
    typer.Option("--compile/--no_compile", help="torch.compile the networks; the default ConvNet is fused as it is."),
]

Deterministic = Annotated[
    bool, typer.Option("--deterministic", help="On a GPU: use repeatable algorithms only. A CPU always repeats.")
]

SmallClasses = Annotated[
    str,
    typer.Option("--small_classes", metavar="use_all|error", help="What to do with a class smaller than batch_real."),
]

Recipe = Annotated[
    str,
    typer.Option(
        "--recipe", metavar="dm|trained", help="Settings to start from: dm, the paper's; trained, which needs a pool."
    ),
]

Partition = Annotated[
    int, typer.Option("--partition", "--factor", help="f: every synthetic image is a canvas of f by f training images.")
]

Objective = Annotated[
    str,
    typer.Option(
        "--objective",
        metavar="mean|mmd|cov",
        help="What is matched of each class: the mean, all moments, or mean and covariance.",
    ),
]

Networks = Annotated[
    str, typer.Option("--networks", metavar="random|trained", help="Match in random or in trained networks.")
]

Pool = Annotated[Path | None, typer.Option("--pool", help="Trained networks, a file that `fastdm pool` wrote.")]

CeWeight = Annotated[float, typer.Option("--ce_weight", help="Weight of the cross-entropy in trained networks.")]

CeAhead = Annotated[
    int,
    typer.Option("--ce_ahead", help="Most snapshots that the cross-entropy's network is later than the matched one."),
]

Clamp = Annotated[
    bool | None,
    typer.Option(
        "--clamp/--no_clamp",
        help="Keep pixels in [0, 1], then the unit of lr_img.  [default: with a partition or trained networks]",
    ),
]

Normalised = Annotated[
    bool | None,
    typer.Option(
        "--normalised/--not_normalised",
        help="Whether the pixels of other people's .pt are normalised, or lie in [0, 1].  [default: as its layout has "
        "them]",
    ),
]

PartitionOfFile = Annotated[
    int | None,
    typer.Option(
        "--partition",
        "--factor",
        help="f, where every image of other people's .pt holds f by f training images, as IDC's do with -f 2.  "
        "[default: 1]",
    ),
]

Profile = Annotated[
    str | None,
    typer.Option("--profile", help="Iterations to profile, such as 100-102: a trace, and the ten costliest ops."),
]

Resume = Annotated[bool, typer.Option("--resume", help="Resume from what save_path holds; keep what was evaluated.")]

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Start over where save_path already holds results.")]

OverwriteFile = Annotated[bool, typer.Option("--overwrite", help="Replace OUT where it is there already.")]

SaveEvery = Annotated[int, typer.Option("--save_every", min=1, help="Iterations between checkpoints.")]
SaveMinutes = Annotated[
    float | None, typer.Option("--save_minutes", help="Also save a checkpoint every so many minutes.  [default: never]")
]

PictureEvery = Annotated[int, typer.Option("--picture_every", min=1, help="Iterations between pictures.")]

EvalEvery = Annotated[
    int | None,
    typer.Option("--eval_every", min=1, help="Also evaluate the set every so many iterations.  [default: never]"),
]

Tensorboard = Annotated[
    bool, typer.Option("--tensorboard", help="Write losses, accuracies and pictures for TensorBoard.")
]

Verbose = Annotated[bool, typer.Option("--verbose", help="Say what memory is used for.")]


def iteration_range(text: str | None) -> range | None:
    """The range that "100-102", or "100", means."""
    if text is None:
        return None
    first, _, last = text.partition("-")
    if not (first.isdecimal() and (last or first).isdecimal()):
        raise FastDMError(f"profile is {text!r}; it must be an iteration or the first and the last, such as 100-102")
    return range(int(first), int(last or first) + 1)


def several(text: str) -> list[str]:
    """The words that "one,two" means, each once."""
    return list(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))


def mebibytes(count: int | None) -> int | None:
    return None if count is None else count << 20
