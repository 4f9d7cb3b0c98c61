"""`fastdm condense`."""

import dataclasses
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import typer

from fastdm.cli import options
from fastdm.cli.arguments import config_text
from fastdm.cli.output import among_ranks, print_evaluation, print_outcome, print_total
from fastdm.cli.settings import given_settings, named_dataset
from fastdm.errors import FastDMError

if TYPE_CHECKING:
    from fastdm.condensation.settings import Settings
    from fastdm.data.pool import Dataset
    from fastdm.evaluation.protocol import Protocol
    from fastdm.runs.options import RunOptions
    from fastdm.system.ranks import Ranks

NOT_SETTINGS = ("config", "overwrite", "preset", "resume", "source", "verbose")
"""Flags that say how a command goes, not what it makes."""


def condense(
    ctx: typer.Context,
    source: options.Source = None,
    dataset: options.Dataset = "CIFAR10",
    model: options.Model = None,
    preset: options.Preset = None,
    ipc: options.Ipc = options.DEFAULT_IPC,
    eval_mode: options.EvalMode = "SS",
    num_exp: options.NumExp = 5,
    num_eval: options.NumEval = 20,
    epoch_eval_train: options.Epochs = 1000,
    iteration: options.Iteration = 20_000,
    lr_img: options.LrImg = None,
    lr_net: options.LrNet = 0.01,
    batch_real: options.BatchReal = 256,
    batch_train: options.BatchTrain = None,
    init: options.Init = "real",
    dsa_strategy: options.DsaStrategy = None,
    data_path: options.DataPath = Path("data"),
    image_size: options.ImageSize = None,
    save_path: options.SavePath = Path("result"),
    method: options.Method = "DM",
    dis_metric: options.DisMetric = "ours",
    seed: options.Seed = 0,
    device: options.Device = None,
    precision: options.PrecisionOption = None,
    backend: options.Backend = "auto",
    aug_mode: options.AugMode = "S",
    momentum: options.Momentum = 0.5,
    chunk_memory: options.ChunkMemory = None,
    compile: options.Compile = False,
    deterministic: options.Deterministic = False,
    small_classes: options.SmallClasses = "use_all",
    recipe: options.Recipe = "dm",
    partition: options.Partition = 1,
    objective: options.Objective = "mean",
    networks: options.Networks = "random",
    pool: options.Pool = None,
    ce_weight: options.CeWeight = 0.0,
    ce_ahead: options.CeAhead = 6,
    clamp: options.Clamp = None,
    protocol: options.ProtocolName = "dm",
    checks: options.Checks = 1,
    profile: options.Profile = None,
    resume: options.Resume = False,
    overwrite: options.Overwrite = False,
    save_every: options.SaveEvery = 1000,
    save_minutes: options.SaveMinutes = None,
    picture_every: options.PictureEvery = 1000,
    eval_every: options.EvalEvery = None,
    tensorboard: options.Tensorboard = False,
    verbose: options.Verbose = False,
    config: options.Config = None,
) -> None:
    """Condense a data set and evaluate the result; takes the public main_DM.py's flags.

    Writes under SAVE_PATH: res_DM_{dataset}_{model}_{ipc}ipc.pt (the public code's format), vis_DM_….png, a run folder
    per experiment with settings, flags (config.yaml), log, checkpoint and the set as safetensors, and report_DM_….html,
    a page that shows them. What is there already is refused: --resume continues it, --overwrite starts over.

    Several processes that torchrun or srun started share the classes, and the networks of evaluations.
    """
    if resume and overwrite:
        raise FastDMError("--resume continues a run, and --overwrite starts over: give one of them")
    with among_ranks() as ranks:
        _condense(ctx, SimpleNamespace(**ctx.params), ranks)


def _condense(context: typer.Context, flags: SimpleNamespace, ranks: "Ranks") -> None:
    from fastdm.applications.experiments import run_experiments
    from fastdm.applications.report.page import report_of
    from fastdm.condensation.presets import find_preset
    from fastdm.data.sources import open_dataset
    from fastdm.networks.trained import NetworkPool
    from fastdm.system.device import default_device
    from fastdm.system.ranks import was_restarted

    if was_restarted():
        flags.resume, flags.overwrite = True, False
    named = named_dataset(context)
    if named is None and flags.preset is not None:
        raise FastDMError(f"preset {flags.preset} needs a data set: name a packed one, such as fastdm pack writes")
    flags.dataset = named or flags.dataset
    data = open_dataset(flags.dataset, data_path=flags.data_path, image_size=flags.image_size)
    device = default_device(flags.device)
    pool = None if flags.pool is None else NetworkPool.load(flags.pool)
    if flags.preset is not None:
        find_preset(flags.preset).check(flags.preset, data)
    settings = given_settings(context, data, pool).resolve(data, device)
    assert settings.network is not None
    protocol = protocol_of(flags, settings, data) if flags.num_eval else None
    path = run_experiments(
        data,
        settings,
        protocol,
        device,
        num_exp=flags.num_exp,
        save_path=flags.save_path,
        report=print_evaluation,
        pool=pool,
        report_total=partial(print_total, experiments=flags.num_exp, model=settings.network, dataset=data.name),
        name=name_in_files(flags.dataset, data.name),
        eval_every=flags.eval_every,
        options=_run_options(flags, settings),
    )
    folders = [flags.save_path / f"{path.stem.removeprefix('res_')}_exp{number}" for number in range(flags.num_exp)]
    if ranks.first:
        print_outcome(path, report_of(path, folders, data), folders, evaluated=protocol is not None)


def protocol_of(flags: SimpleNamespace, settings: "Settings", data: "Dataset") -> "Protocol":
    """How the flags have the set evaluated."""
    from fastdm.evaluation.measure import training_strategy
    from fastdm.evaluation.protocol import Protocol
    from fastdm.networks.architectures import evaluation_pool

    return Protocol(
        evaluation_pool(flags.eval_mode, str(settings.network)),
        training_strategy(dataclasses.asdict(settings), data),
        flags.num_eval,
        flags.epoch_eval_train,
        flags.lr_net,
        flags.batch_train,
        flags.seed,
        name=flags.protocol,
        checks=flags.checks,
    )


def _run_options(flags: SimpleNamespace, settings: "Settings") -> "RunOptions":
    from fastdm.runs.options import RunOptions

    return RunOptions(
        backend=flags.backend,
        chunk_memory=options.mebibytes(flags.chunk_memory),
        compile=flags.compile,
        profile=options.iteration_range(flags.profile),
        resume=flags.resume,
        overwrite=flags.overwrite,
        save_every=flags.save_every,
        save_minutes=flags.save_minutes,
        picture_every=flags.picture_every,
        progress=True,
        verbose=flags.verbose,
        tensorboard=flags.tensorboard,
        config=_config(flags, settings),
    )


def _config(flags: SimpleNamespace, settings: "Settings") -> str:
    """The file that repeats the run: the flags, with the values that settings took."""
    kept = {name: value for name, value in vars(flags).items() if name not in NOT_SETTINGS}
    chosen = {
        "model": settings.network,
        "lr_img": settings.lr_img,
        "dsa_strategy": settings.strategy,
        "precision": settings.precision,
    }
    return config_text(kept | chosen)


def name_in_files(given: str, name: str) -> str:
    """What file names call a data set: as it was given where that is a name, as in the public code."""
    return given if given.lower() == name.lower() else name
