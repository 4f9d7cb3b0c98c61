"""The ``fastdm`` command: parses, calls, prints."""

import json
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.console import Console
from rich.table import Table

from fastdm import __version__
from fastdm.errors import FastDMError

if TYPE_CHECKING:
    from fastdm.data.pool import Dataset as OpenDataset
    from fastdm.evaluation import Evaluation

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    # The public code's flags have underscores and a capital letter; dashes and lower case serve as well.
    context_settings={"token_normalize_func": lambda token: token.replace("-", "_").lower()},
    help="Condense image data sets into a few learnt images per class by distribution matching.",
)

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
BatchTrain = Annotated[int, typer.Option("--batch_train", help="Batch size of the evaluation's training.")]
Seed = Annotated[int, typer.Option("--seed", help="Every random draw follows from it.")]
Model = Annotated[
    str | None,
    typer.Option("--model", help=f"Network to match in: {NETWORKS}  [default: ConvNet, deeper above 32 pixels]"),
]
WHOLE_SET_EPOCHS = 200
EvalMode = Annotated[
    str, typer.Option("--eval_mode", help="Networks to evaluate with: SS (the model itself), S, M, B, W, D, A, P, N.")
]
Ipc = Annotated[int, typer.Option("--ipc", help="Synthetic images per class.")]
BatchReal = Annotated[int, typer.Option("--batch_real", help="Real images per class and update.")]
PrecisionOption = Annotated[
    str | None, typer.Option("--precision", help="fp32, tf32 or bf16.  [default: the fastest of equal accuracy]")
]
Backend = Annotated[str, typer.Option("--backend", help="Of the ops: auto, triton or reference.")]
ChunkMemory = Annotated[
    int | None,
    typer.Option("--chunk_memory", min=1, help="MiB that one chunk of classes may take.  [default: what is free]"),
]
Device = Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:1, …  [default: a GPU if there is one]")]


@app.command()
def condense(
    dataset: Dataset = "CIFAR10",
    model: Model = None,
    ipc: Ipc = 1,
    eval_mode: EvalMode = "SS",
    num_exp: Annotated[
        int, typer.Option("--num_exp", min=1, help="Sets to condense, with the seeds seed, seed + 1, …")
    ] = 5,
    num_eval: Annotated[
        int, typer.Option("--num_eval", min=0, help="Networks trained to evaluate each set; 0: no evaluation.")
    ] = 20,
    epoch_eval_train: Epochs = 1000,
    iteration: Annotated[int, typer.Option("--Iteration", "--iterations", help="Updates of the pixels.")] = 20_000,
    lr_img: Annotated[
        float | None,
        typer.Option("--lr_img", help="Learning rate of the pixels.  [default: 1; CIFAR10 from ipc 100: 10]"),
    ] = None,
    lr_net: LrNet = 0.01,
    batch_real: BatchReal = 256,
    batch_train: BatchTrain = 256,
    init: Annotated[str, typer.Option("--init", help="Start from 'real' images or from 'noise'.")] = "real",
    dsa_strategy: Annotated[
        str | None,
        typer.Option(
            "--dsa_strategy",
            help="Augmentations joined by _, or none.  [default: all six; digits are not flipped]",
        ),
    ] = None,
    data_path: DataPath = Path("data"),
    image_size: ImageSize = None,
    save_path: Annotated[Path, typer.Option("--save_path", help="Folder for results.")] = Path("result"),
    dis_metric: Annotated[
        str, typer.Option("--dis_metric", help="Accepted and ignored, as in the public DM.")
    ] = "ours",
    seed: Seed = 0,
    device: Device = None,
    precision: PrecisionOption = None,
    backend: Backend = "auto",
    aug_mode: Annotated[str, typer.Option("--aug_mode", help="S: one augmentation per class; M: all of them.")] = "S",
    momentum: Annotated[float, typer.Option("--momentum", help="Of the pixels' SGD.")] = 0.5,
    chunk_memory: ChunkMemory = None,
    compile: Annotated[
        bool,
        typer.Option(
            "--compile/--no_compile", help="torch.compile the networks; the default ConvNet is fused as it is."
        ),
    ] = False,
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="On a GPU: use repeatable algorithms only. A CPU always repeats.")
    ] = False,
    small_classes: Annotated[
        str, typer.Option("--small_classes", help="A class smaller than batch_real: 'use_all' of it, or 'error'.")
    ] = "use_all",
    profile: Annotated[
        str | None,
        typer.Option("--profile", help="Iterations to look into, such as 100-102: a trace, and the ten costliest ops."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the checkpoints under save_path; keep what was evaluated.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Start anew where save_path holds this run.")] = False,
    save_every: Annotated[int, typer.Option("--save_every", min=1, help="Iterations between checkpoints.")] = 1000,
    picture_every: Annotated[int, typer.Option("--picture_every", min=1, help="Iterations between pictures.")] = 1000,
) -> None:
    """Condense a data set and evaluate the result; takes the public main_DM.py's flags.

    Writes under SAVE_PATH: res_DM_{dataset}_{model}_{ipc}ipc.pt (the public code's format), vis_DM_….png, and a run
    folder per experiment with settings, log, checkpoint and the set as safetensors.
    """
    from fastdm.build import default_device
    from fastdm.data.sources import open_dataset
    from fastdm.evaluation import Protocol
    from fastdm.experiments import run_experiments
    from fastdm.networks import evaluation_pool
    from fastdm.settings import Settings

    data = open_dataset(dataset, data_path=data_path, image_size=image_size)
    chosen_device = default_device(device)
    settings = Settings(
        ipc=ipc,
        iterations=iteration,
        batch_real=batch_real,
        lr_img=lr_img,
        momentum=momentum,
        init=cast(Any, init),
        strategy=dsa_strategy,
        aug_mode=cast(Any, aug_mode.upper()),
        network=model,
        seed=seed,
        precision=cast(Any, precision),
        deterministic=deterministic,
        small_classes=cast(Any, small_classes),
    ).resolve(data, chosen_device)
    assert settings.network is not None
    assert settings.strategy is not None
    networks = evaluation_pool(eval_mode, settings.network)
    protocol = None
    if num_eval:
        protocol = Protocol(networks, settings.strategy, num_eval, epoch_eval_train, lr_net, batch_train, seed)
    path = run_experiments(
        data,
        settings,
        protocol,
        chosen_device,
        num_exp=num_exp,
        save_path=save_path,
        resume=resume,
        report=_print_evaluation,
        backend=backend,
        chunk_memory=_mebibytes(chunk_memory),
        compile=compile,
        profile=_range(profile),
        overwrite=overwrite,
        save_every=save_every,
        picture_every=picture_every,
        progress=True,
    )
    _print_saved(path)


@app.command()
def evaluate(
    file: Annotated[Path, typer.Argument(help="A condensed set: .safetensors, or the public code's .pt.")],
    dataset: Annotated[
        str | None,
        typer.Option("--dataset", help=f"Whose test images to use: {SOURCE}  [default: the one that FILE names]"),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", help=f"Network to train: {NETWORKS}  [default: what the set was condensed with]"),
    ] = None,
    eval_mode: EvalMode = "SS",
    num_eval: Annotated[int, typer.Option("--num_eval", min=1, help="Networks trained on each set.")] = 20,
    epoch_eval_train: Epochs = 1000,
    lr_net: LrNet = 0.01,
    batch_train: BatchTrain = 256,
    dsa_strategy: Annotated[
        str | None,
        typer.Option(
            "--dsa_strategy",
            help="Augmentations joined by _, or none.  [default: what the set was condensed with]",
        ),
    ] = None,
    data_path: DataPath = Path("data"),
    image_size: ImageSize = None,
    experiment: Annotated[
        int | None,
        typer.Option("--experiment", help="Which set of a .pt file, counted from 0.  [default: all, then pooled]"),
    ] = None,
    baselines: Annotated[
        bool, typer.Option("--baselines", help="Also evaluate as many random real images, and the whole set.")
    ] = False,
    epoch_whole_set: Annotated[
        int | None,
        typer.Option(
            "--epoch_whole_set",
            min=1,
            help="Epochs of the whole-set baseline, whose epochs have far more updates than those of a condensed set.  "
            f"[default: {WHOLE_SET_EPOCHS}, as one trains on a whole set; at most epoch_eval_train]",
        ),
    ] = None,
    seed: Seed = 0,
    device: Device = None,
) -> None:
    """Train networks on a condensed set; print their accuracy on the data set's test images.

    Set number e of a .pt file is evaluated with seed + e, as condense does it.
    """
    from dataclasses import replace

    from fastdm.build import default_device
    from fastdm.evaluation import Evaluation, Protocol, condensed_with, measure, random_selection, whole_set
    from fastdm.networks import evaluation_pool
    from fastdm.synthetic import SyntheticSet

    data = _dataset_of(file, dataset, data_path, image_size)
    if experiment is None:
        sets = dict(enumerate(SyntheticSet.load_all(file, dataset=data)))
    else:
        sets = {experiment: SyntheticSet.load(file, experiment=experiment, dataset=data)}
    first = next(iter(sets.values()))
    chosen_device = default_device(device)
    usual = condensed_with(first, data, chosen_device)
    protocol = Protocol(
        networks=evaluation_pool(eval_mode, model or cast(str, usual.network)),
        strategy=dsa_strategy or cast(str, usual.strategy),
        num_eval=num_eval,
        epochs=epoch_eval_train,
        lr_net=lr_net,
        batch_train=batch_train,
        seed=seed,
    )

    several = len(sets) > 1 or experiment is not None
    candidates: list[tuple[str, Any, Protocol]] = [
        (f"{file}, set {number}" if several else str(file), synthetic, replace(protocol, seed=seed + number))
        for number, synthetic in sets.items()
    ]
    if baselines:
        few_epochs = replace(protocol, epochs=epoch_whole_set or min(WHOLE_SET_EPOCHS, epoch_eval_train))
        candidates.append(("random real images", random_selection(data, first.ipc, seed), protocol))
        candidates.append(("whole set", whole_set(data), few_epochs))
    evaluations = []
    for title, candidate, how in candidates:
        evaluations.append(measure(candidate, data, how, chosen_device, progress=True))
        _print_evaluation(title, evaluations[-1], dataset=data.name)
        if len(evaluations) == len(sets) > 1:
            _print_evaluation(f"{file}, all {len(sets)} sets", Evaluation.pooled(evaluations), dataset=data.name)


@app.command()
def inspect(
    file: Annotated[Path, typer.Argument(help="A condensed set, a packed set, a checkpoint or the public code's .pt.")],
    verify: Annotated[
        bool, typer.Option("--verify", help="Also compare every class's checksum in a packed set.")
    ] = False,
) -> None:
    """Say what is in a file."""
    from fastdm.inspection import inspect as inspect_file

    facts = inspect_file(file, verify=verify)
    console = Console()
    if not console.is_terminal:
        print(json.dumps({"file": str(file), **facts}))
        return
    table = Table(title=str(file), show_header=False)
    for name, value in facts.items():
        table.add_row(name, str(value))
    console.print(table)


@app.command()
def pack(
    source: Annotated[str, typer.Argument(help=SOURCE)],
    out: Annotated[Path, typer.Argument(help="The file to write.")],
    size: Annotated[
        int | None,
        typer.Option("--size", help="Side of the packed images.  [default: 64 for image files, else theirs]"),
    ] = None,
    filter: Annotated[str, typer.Option("--filter", help="How images are resized: box is ImageNet64's way.")] = "box",
    fit: Annotated[
        str, typer.Option("--fit", help="squash the whole image to a square, or center_crop it first.")
    ] = "squash",
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Decoding threads.  [default: one per core]")
    ] = None,
    on_error: Annotated[
        str, typer.Option("--on_error", help="An image that cannot be decoded: raise, or skip and list it.")
    ] = "raise",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a packing that was stopped.")] = False,
    name: Annotated[str | None, typer.Option("--name", help="Of the data set.  [default: the folder's]")] = None,
    data_path: DataPath = Path("data"),
) -> None:
    """Pack a data set into one file that opens in milliseconds: class-sorted uint8 images in safetensors layout."""
    from fastdm.data.packed import pack as pack_set

    packed = pack_set(
        source,
        out,
        size,
        cast(Any, filter),
        cast(Any, fit),
        workers,
        cast(Any, on_error),
        resume=resume,
        name=name,
        data_path=data_path,
        progress=True,
    )
    for file, error in packed.skipped:
        typer.echo(f"skipped {file}: {error}", err=True)
    _print_saved(out)


@app.command()
def profile(
    dataset: Dataset = "CIFAR10",
    model: Model = None,
    ipc: Ipc = 10,
    batch_real: BatchReal = 256,
    iterations: Annotated[int, typer.Option("--iterations", min=1, help="Iterations to record.")] = 3,
    data_path: DataPath = Path("data"),
    save_path: Annotated[Path, typer.Option("--save_path", help="Folder for the trace.")] = Path("result/profile"),
    seed: Seed = 0,
    device: Device = None,
    precision: PrecisionOption = None,
    backend: Backend = "auto",
    chunk_memory: ChunkMemory = None,
) -> None:
    """Show where the time of an iteration goes: a trace, the ten costliest ops, and what bounds the run."""
    from fastdm.build import chosen_backend, default_device
    from fastdm.data.sources import open_dataset
    from fastdm.profiling import profile as profile_run
    from fastdm.settings import Settings

    data = open_dataset(dataset, data_path=data_path)
    settings = Settings(ipc=ipc, batch_real=batch_real, network=model, seed=seed, precision=cast(Any, precision))
    with chosen_backend(backend):
        result = profile_run(
            data,
            settings,
            default_device(device),
            save_path,
            iterations=iterations,
            chunk_memory=_mebibytes(chunk_memory),
        )
    console = Console()
    if not console.is_terminal:
        print(json.dumps(result.facts()))
        return
    table = Table("op", "ms per iteration", "calls per iteration", title=f"{data.name}, ipc {ipc}, {result.device}")
    for name, seconds, calls in result.ops:
        table.add_row(name, f"{1000 * seconds:.2f}", f"{calls:.0f}")
    console.print(table)
    console.print(result.verdict(), highlight=False)
    console.print(f"peak memory {result.peak_bytes / 2**20:.0f} MiB; wrote {', '.join(result.files)}", highlight=False)


def _range(text: str | None) -> range | None:
    """The range that "100-102", or "100", means."""
    if text is None:
        return None
    first, _, last = text.partition("-")
    if not (first.isdecimal() and (last or first).isdecimal()):
        raise FastDMError(f"profile is {text!r}; it must be an iteration or the first and the last, such as 100-102")
    return range(int(first), int(last or first) + 1)


def _mebibytes(count: int | None) -> int | None:
    return None if count is None else count << 20


def _dataset_of(file: Path, named: str | None, data_path: Path, image_size: int | None) -> "OpenDataset":
    """The data set named, by default the one that the file of a condensed set names."""
    from fastdm.data.sources import open_dataset
    from fastdm.synthetic import recorded_dataset

    if named is not None:
        return open_dataset(named, data_path=data_path, image_size=image_size)
    recorded = recorded_dataset(file)
    try:
        return open_dataset(recorded, data_path=data_path, image_size=image_size)
    except FastDMError as error:
        raise FastDMError(
            f"{file} stands for data set {recorded}; say with --dataset where that is ({error})"
        ) from error


def _print_saved(path: Path) -> None:
    if Console().is_terminal:
        typer.echo(f"saved {path}")
    else:
        print(json.dumps({"saved": str(path)}))


def _print_evaluation(title: str, evaluation: "Evaluation", **about: str) -> None:
    """A table on a terminal, with accuracies in percent; JSON lines elsewhere, with what they are ``about``."""
    console = Console()
    table = Table("network", "accuracy %", "networks", title=title)
    for name, accuracies in evaluation.accuracies.items():
        mean, std = evaluation.mean[name], evaluation.std[name]
        if console.is_terminal:
            table.add_row(name, f"{100 * mean:.2f} ± {100 * std:.2f}", str(len(accuracies)))
        else:
            line = {"evaluation": title, **about, "network": name, "mean": mean, "std": std, "accuracies": accuracies}
            print(json.dumps(line), flush=True)
    if console.is_terminal:
        console.print(table)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"fastdm {__version__}")
        raise typer.Exit


@app.callback()
def _global(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Condense image data sets into a few learnt images per class by distribution matching."""


class _Stopped(BaseException):
    """Ctrl-C, or a batch system's end of time."""


def _stop(signal_number: int, frame: object) -> None:
    raise _Stopped


def main() -> None:
    """Run the command; a user's mistake is one sentence and exit code 2, Ctrl-C leaves a checkpoint and is 130."""
    # An exception of our own: the option parser would end a KeyboardInterrupt in its own way.
    signal.signal(signal.SIGINT, _stop)
    signal.signal(signal.SIGTERM, _stop)
    try:
        app()
    except FastDMError as error:
        print(f"fastdm: {error}", file=sys.stderr)
        sys.exit(2)
    except _Stopped:
        print("fastdm: stopped; condense and pack go on with --resume", file=sys.stderr)
        sys.exit(130)
