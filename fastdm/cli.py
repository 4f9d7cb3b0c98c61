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

Dataset = Annotated[str, typer.Option("--dataset", help=SOURCE)]
DataPath = Annotated[Path, typer.Option("--data_path", help="Where named data sets are, or are downloaded to.")]
NumEval = Annotated[int, typer.Option("--num_eval", help="Networks trained per evaluation; 0: no evaluation.")]
Epochs = Annotated[int, typer.Option("--epoch_eval_train", help="Epochs of each evaluation's training.")]
LrNet = Annotated[float, typer.Option("--lr_net", help="Learning rate of the evaluation's networks.")]
BatchTrain = Annotated[int, typer.Option("--batch_train", help="Batch size of the evaluation's training.")]
Seed = Annotated[int, typer.Option("--seed", help="Every random draw follows from it.")]
Model = Annotated[
    str | None, typer.Option("--model", help="Network to match in.  [default: ConvNet, deeper above 32 pixels]")
]
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
    int | None, typer.Option("--chunk_memory", help="MiB that one chunk of classes may take.  [default: what is free]")
]
Device = Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:1, …  [default: a GPU if there is one]")]


@app.command()
def condense(
    dataset: Dataset = "CIFAR10",
    model: Model = None,
    ipc: Ipc = 1,
    eval_mode: EvalMode = "SS",
    num_exp: Annotated[int, typer.Option("--num_exp", help="Sets to condense, with the seeds seed, seed + 1, …")] = 5,
    num_eval: NumEval = 20,
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
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoints under save_path.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Start anew where save_path holds this run.")] = False,
    save_every: Annotated[int, typer.Option("--save_every", help="Iterations between checkpoints.")] = 1000,
    picture_every: Annotated[int, typer.Option("--picture_every", help="Iterations between pictures.")] = 1000,
) -> None:
    """Condense a data set and evaluate the result; takes the public main_DM.py's flags.

    Writes under SAVE_PATH: res_DM_{dataset}_{model}_{ipc}ipc.pt (the public code's format), vis_DM_….png, and a run
    folder per experiment with settings, log, checkpoint and the set as safetensors.
    """
    from fastdm.build import default_device
    from fastdm.data.sources import open_dataset
    from fastdm.evaluation import evaluate as evaluate_set
    from fastdm.loop import condense as condense_set
    from fastdm.networks import evaluation_pool
    from fastdm.settings import Settings
    from fastdm.synthetic import save_public

    data = open_dataset(dataset, data_path=data_path)
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
    ).resolve(data, default_device(device))
    assert settings.network is not None
    networks = evaluation_pool(eval_mode, settings.network)
    stem = f"DM_{data.name}_{settings.network}_{ipc}ipc"

    sets = []
    accuracies: dict[str, list[float]] = {name: [] for name in networks}
    for experiment in range(num_exp):
        synthetic = condense_set(
            data,
            ipc,
            settings=settings,
            seed=seed + experiment,
            device=device,
            backend=backend,
            chunk_memory=_mebibytes(chunk_memory),
            compile=compile,
            profile=_range(profile),
            save_path=save_path / f"{stem}_exp{experiment}",
            resume=resume,
            overwrite=overwrite,
            save_every=save_every,
            picture_every=picture_every,
            progress=True,
        )
        synthetic.save_grid(save_path / f"vis_{stem}_exp{experiment}_iter{iteration}.png")
        sets.append(synthetic)
        if num_eval:
            evaluation = evaluate_set(
                synthetic,
                data,
                networks=networks,
                num_eval=num_eval,
                epochs=epoch_eval_train,
                lr_net=lr_net,
                batch_train=batch_train,
                strategy=settings.strategy,
                seed=seed + experiment,
                device=device,
                progress=True,
            )
            _print_evaluation(f"experiment {experiment}", evaluation)
            for name in networks:
                accuracies[name] += evaluation.accuracies[name]
        save_public(sets, save_path / f"res_{stem}.pt", accuracies)
    typer.echo(f"saved {save_path / f'res_{stem}.pt'}")


@app.command()
def evaluate(
    file: Annotated[Path, typer.Argument(help="A condensed set: .safetensors, or the public code's .pt.")],
    dataset: Dataset = "CIFAR10",
    model: Annotated[str, typer.Option("--model", help="Network that the set was condensed with.")] = "ConvNet",
    eval_mode: EvalMode = "SS",
    num_eval: NumEval = 20,
    epoch_eval_train: Epochs = 1000,
    lr_net: LrNet = 0.01,
    batch_train: BatchTrain = 256,
    dsa_strategy: Annotated[
        str, typer.Option("--dsa_strategy", help="Augmentations joined by _, or none.")
    ] = "color_crop_cutout_flip_scale_rotate",
    data_path: DataPath = Path("data"),
    baselines: Annotated[
        bool, typer.Option("--baselines", help="Also evaluate as many random real images, and the whole set.")
    ] = False,
    seed: Seed = 0,
    device: Device = None,
) -> None:
    """Train networks on a condensed set; print their accuracy on the data set's test images."""
    from fastdm.data.sources import open_dataset
    from fastdm.evaluation import evaluate as evaluate_set
    from fastdm.evaluation import random_selection, whole_set
    from fastdm.networks import evaluation_pool
    from fastdm.synthetic import SyntheticSet

    data = open_dataset(dataset, data_path=data_path)
    synthetic = SyntheticSet.load(file, dataset=data)
    candidates: dict[str, Any] = {str(file): synthetic}
    if baselines:
        candidates["random real images"] = random_selection(data, synthetic.ipc, seed)
        candidates["whole set"] = whole_set(data)
    for title, candidate in candidates.items():
        evaluation = evaluate_set(
            candidate,
            data,
            networks=evaluation_pool(eval_mode, model),
            num_eval=num_eval,
            epochs=epoch_eval_train,
            lr_net=lr_net,
            batch_train=batch_train,
            strategy=dsa_strategy,
            seed=seed,
            device=device,
            progress=True,
        )
        _print_evaluation(title, evaluation)


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
    workers: Annotated[int | None, typer.Option("--workers", help="Decoding threads.  [default: one per core]")] = None,
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
    typer.echo(f"saved {out}")


@app.command()
def profile(
    dataset: Dataset = "CIFAR10",
    model: Model = None,
    ipc: Ipc = 10,
    batch_real: BatchReal = 256,
    iterations: Annotated[int, typer.Option("--iterations", help="Iterations to record.")] = 3,
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


def _print_evaluation(title: str, evaluation: "Evaluation") -> None:
    """A table on a terminal, JSON lines elsewhere; accuracies in percent."""
    console = Console()
    table = Table("network", "accuracy %", "networks", title=title)
    for name, accuracies in evaluation.accuracies.items():
        mean, std = evaluation.mean[name], evaluation.std[name]
        if console.is_terminal:
            table.add_row(name, f"{100 * mean:.2f} ± {100 * std:.2f}", str(len(accuracies)))
        else:
            line = {"evaluation": title, "network": name, "mean": mean, "std": std, "accuracies": accuracies}
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
