"""`fastdm condense`."""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from fastdm.cli.arguments import config_text
from fastdm.cli.options import (
    DEFAULT_IPC,
    Backend,
    BatchReal,
    BatchTrain,
    Checks,
    ChunkMemory,
    Config,
    DataPath,
    Dataset,
    Device,
    Epochs,
    EvalMode,
    ImageSize,
    Ipc,
    LrNet,
    Method,
    Model,
    PrecisionOption,
    ProtocolName,
    Seed,
    a_path,
    iteration_range,
    mebibytes,
)
from fastdm.cli.output import print_evaluation, print_outcome, print_total
from fastdm.errors import FastDMError

NOT_SETTINGS = ("config", "overwrite", "resume", "verbose")
"""Flags that say how a command goes, not what it makes."""


def condense(
    ctx: typer.Context,
    dataset: Dataset = "CIFAR10",
    model: Model = None,
    ipc: Ipc = DEFAULT_IPC,
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
    batch_train: BatchTrain = None,
    init: Annotated[str, typer.Option("--init", help="Start from 'real' images or from 'noise'.")] = "real",
    dsa_strategy: Annotated[
        str | None,
        typer.Option(
            "--dsa_strategy",
            "--strategy",
            help="Augmentations joined by _, or none.  [default: all six; digits are not flipped]",
        ),
    ] = None,
    data_path: DataPath = Path("data"),
    image_size: ImageSize = None,
    save_path: Annotated[Path, a_path("--save_path", "Folder for results.")] = Path("result"),
    method: Method = "DM",
    dis_metric: Annotated[
        str, typer.Option("--dis_metric", help="Accepted and ignored, as in the public DM.")
    ] = "ours",
    seed: Seed = 0,
    device: Device = None,
    precision: PrecisionOption = None,
    backend: Backend = "auto",
    aug_mode: Annotated[str, typer.Option("--aug_mode", help="S: one augmentation per class; M: all of them.")] = "S",
    momentum: Annotated[float, typer.Option("--momentum", help="Momentum of the SGD on the pixels.")] = 0.5,
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
    recipe: Annotated[
        str,
        typer.Option("--recipe", help="Settings to start from: dm, the paper's; trained, which needs a pool."),
    ] = "dm",
    partition: Annotated[
        int, typer.Option("--partition", "--factor", help="f: every image holds f by f training images.")
    ] = 1,
    objective: Annotated[str, typer.Option("--objective", help="What is matched: mean, cov or mmd.")] = "mean",
    networks: Annotated[str, typer.Option("--networks", help="Match in random or in trained networks.")] = "random",
    pool: Annotated[
        Path | None, typer.Option("--pool", help="Trained networks, a file that `fastdm pool` wrote.")
    ] = None,
    ce_weight: Annotated[
        float, typer.Option("--ce_weight", help="Weight of the cross-entropy in trained networks.")
    ] = 0.0,
    ce_ahead: Annotated[
        int, typer.Option("--ce_ahead", help="Snapshots that it may be later than the one that is matched in.")
    ] = 6,
    clamp: Annotated[
        bool | None,
        typer.Option(
            "--clamp/--no_clamp",
            help="Keep pixels, and take lr_img, in [0, 1].  [default: with a partition or trained networks]",
        ),
    ] = None,
    protocol: ProtocolName = "dm",
    checks: Checks = 1,
    profile: Annotated[
        str | None,
        typer.Option("--profile", help="Iterations to profile, such as 100-102: a trace, and the ten costliest ops."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Resume from the checkpoints under save_path; keep what was evaluated.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Start over where save_path already holds this run.")
    ] = False,
    save_every: Annotated[int, typer.Option("--save_every", min=1, help="Iterations between checkpoints.")] = 1000,
    picture_every: Annotated[int, typer.Option("--picture_every", min=1, help="Iterations between pictures.")] = 1000,
    eval_every: Annotated[
        int | None,
        typer.Option("--eval_every", min=1, help="Also evaluate the set every so many iterations.  [default: never]"),
    ] = None,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write losses, accuracies and pictures for TensorBoard.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Say what memory is used for.")] = False,
    config: Config = None,
) -> None:
    """Condense a data set and evaluate the result; takes the public main_DM.py's flags.

    Writes under SAVE_PATH: res_DM_{dataset}_{model}_{ipc}ipc.pt (the public code's format), vis_DM_….png, a run folder
    per experiment with settings, flags (config.yaml), log, checkpoint and the set as safetensors, and report_DM_….html,
    a page that shows them. What is there already is refused: --resume continues it, --overwrite starts over.
    """
    from fastdm.applications.experiments import run_experiments
    from fastdm.applications.report.page import report_of
    from fastdm.condensation.loop import matching_pool
    from fastdm.condensation.recipes import recipe_settings
    from fastdm.data.sources import open_dataset
    from fastdm.evaluation.measure import training_strategy
    from fastdm.evaluation.protocol import Protocol
    from fastdm.networks.architectures import evaluation_pool
    from fastdm.networks.trained import NetworkPool
    from fastdm.runs.options import RunOptions
    from fastdm.system.device import default_device

    if resume and overwrite:
        raise FastDMError("--resume goes on with a run, and --overwrite starts over: give one of them")
    data = open_dataset(dataset, data_path=data_path, image_size=image_size)
    chosen_device = default_device(device)
    options: dict[str, Any] = {
        "iteration": ("iterations", iteration),
        "batch_real": ("batch_real", batch_real),
        "lr_img": ("lr_img", lr_img),
        "momentum": ("momentum", momentum),
        "init": ("init", init),
        "dsa_strategy": ("strategy", dsa_strategy),
        "aug_mode": ("aug_mode", aug_mode.upper()),
        "model": ("network", model),
        "seed": ("seed", seed),
        "precision": ("precision", precision),
        "deterministic": ("deterministic", deterministic),
        "small_classes": ("small_classes", small_classes),
        "partition": ("partition", partition),
        "objective": ("objective", objective),
        "networks": ("networks", networks),
        "ce_weight": ("ce_weight", ce_weight),
        "ce_ahead": ("ce_ahead", ce_ahead),
        "clamp": ("clamp", clamp),
    }
    trained = None if pool is None else NetworkPool.load(pool)
    # What the command line does not name is the recipe's.
    given = {name: value for flag, (name, value) in options.items() if _is_given(ctx, flag)}
    settings = dataclasses.replace(recipe_settings(recipe, data, ipc), **given)
    settings = matching_pool(settings, trained, data).resolve(data, chosen_device)
    assert settings.network is not None
    evaluated = evaluation_pool(eval_mode, settings.network)
    measured_by = None
    if num_eval:
        measured_by = Protocol(
            evaluated,
            training_strategy(dataclasses.asdict(settings), data),
            num_eval,
            epoch_eval_train,
            lr_net,
            batch_train,
            seed,
            name=cast(Any, protocol),
            checks=checks,
        )
    flags = {name: value for name, value in ctx.params.items() if name not in NOT_SETTINGS}
    chosen = {
        "model": settings.network,
        "lr_img": settings.lr_img,
        "dsa_strategy": settings.strategy,
        "precision": settings.precision,
    }
    path = run_experiments(
        data,
        settings,
        measured_by,
        chosen_device,
        num_exp=num_exp,
        save_path=save_path,
        report=print_evaluation,
        pool=trained,
        report_total=partial(print_total, experiments=num_exp, model=settings.network, dataset=data.name),
        name=name_in_files(dataset, data.name),
        eval_every=eval_every,
        options=RunOptions(
            backend=backend,
            chunk_memory=mebibytes(chunk_memory),
            compile=compile,
            profile=iteration_range(profile),
            resume=resume,
            overwrite=overwrite,
            save_every=save_every,
            picture_every=picture_every,
            progress=True,
            verbose=verbose,
            tensorboard=tensorboard,
            config=config_text({**flags, **chosen}),
        ),
    )
    folders = [save_path / f"{path.stem.removeprefix('res_')}_exp{number}" for number in range(num_exp)]
    print_outcome(path, report_of(path, folders, data), folders, evaluated=measured_by is not None)


def _is_given(context: typer.Context, flag: str) -> bool:
    """Whether the command line or a configuration names the flag, as opposed to its default."""
    source = context.get_parameter_source(flag)
    return source is not None and source.name != "DEFAULT"


def name_in_files(given: str, name: str) -> str:
    """What file names call a data set: as it was given where that is a name, as in the public code."""
    return given if given.lower() == name.lower() else name
