"""`fastdm condense`."""

import dataclasses
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import typer

from fastdm.cli import flags as flag
from fastdm.cli.output import among_ranks, print_evaluation, print_outcome, print_total
from fastdm.cli.parsing import config_text
from fastdm.cli.settings import SETTINGS, given_settings, named_dataset
from fastdm.errors import FastDMError

if TYPE_CHECKING:
    from fastdm.condensation.settings import Settings
    from fastdm.data.pool import Dataset
    from fastdm.evaluation.protocol import Protocol
    from fastdm.runs.options import RunOptions
    from fastdm.system.ranks import Ranks

NOT_SETTINGS = ("config", "overwrite", "preset", "resume", "source", "verbose")
"""Flags that say how a command goes, not what it makes."""

DECIDED_AGAIN = ("clamp", "deterministic")
"""Settings whose default a repeated run decides in the same way, from other settings or its device."""


def condense(
    ctx: typer.Context,
    source: flag.Source = None,
    dataset: flag.Dataset = "CIFAR10",
    model: flag.Model = None,
    preset: flag.Preset = None,
    ipc: flag.Ipc = flag.DEFAULT_IPC,
    eval_mode: flag.EvalMode = "SS",
    num_exp: flag.NumExp = 5,
    num_eval: flag.NumEval = 20,
    epoch_eval_train: flag.Epochs = 1000,
    iteration: flag.Iteration = 20_000,
    lr_img: flag.LrImg = None,
    lr_net: flag.LrNet = 0.01,
    batch_real: flag.BatchReal = 256,
    batch_train: flag.BatchTrain = None,
    init: flag.Init = "real",
    dsa_strategy: flag.DsaStrategy = None,
    data_path: flag.DataPath = Path("data"),
    image_size: flag.ImageSize = None,
    save_path: flag.SavePath = Path("result"),
    method: flag.Method = "DM",
    dis_metric: flag.DisMetric = "ours",
    seed: flag.Seed = 0,
    device: flag.Device = None,
    precision: flag.PrecisionOption = None,
    backend: flag.Backend = "auto",
    aug_mode: flag.AugMode = "S",
    momentum: flag.Momentum = 0.5,
    chunk_memory: flag.ChunkMemory = None,
    compile: flag.Compile = False,
    deterministic: flag.Deterministic = False,
    small_classes: flag.SmallClasses = "use_all",
    recipe: flag.Recipe = "dm",
    partition: flag.Partition = 1,
    objective: flag.Objective = "mean",
    networks: flag.Networks = "random",
    pool: flag.Pool = None,
    ce_weight: flag.CeWeight = 0.0,
    ce_ahead: flag.CeAhead = 6,
    clamp: flag.Clamp = None,
    protocol: flag.ProtocolName = "dm",
    checks: flag.Checks = 1,
    profile: flag.Profile = None,
    resume: flag.Resume = False,
    overwrite: flag.Overwrite = False,
    save_every: flag.SaveEvery = 1000,
    save_minutes: flag.SaveMinutes = None,
    picture_every: flag.PictureEvery = 1000,
    eval_every: flag.EvalEvery = None,
    tensorboard: flag.Tensorboard = False,
    verbose: flag.Verbose = False,
    config: flag.Config = None,
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
    protocol = protocol_of(flags, settings, data)
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


def protocol_of(flags: SimpleNamespace, settings: "Settings", data: "Dataset") -> "Protocol | None":
    """How the flags have the set evaluated; None for not at all, once the names that the run keeps are checked."""
    from fastdm.evaluation.measure import training_strategy
    from fastdm.evaluation.protocol import Protocol
    from fastdm.networks.architectures import evaluation_pool

    networks = evaluation_pool(flags.eval_mode, str(settings.network))
    strategy = training_strategy(dataclasses.asdict(settings), data)
    if not flags.num_eval:
        Protocol(networks, strategy, name=flags.protocol)
        return None
    return Protocol(
        networks,
        strategy,
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
        chunk_memory=flag.mebibytes(flags.chunk_memory),
        compile=flags.compile,
        profile=flag.iteration_range(flags.profile),
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
    # Also those that a recipe chose: a file of flags names all of them, and what is named replaces a recipe's.
    taken = {name: value for name, value in dataclasses.asdict(settings).items() if name not in DECIDED_AGAIN}
    chosen = {flag: taken[name] for flag in kept if (name := SETTINGS.get(flag, flag)) in taken}
    return config_text(kept | chosen)


def name_in_files(given: str, name: str) -> str:
    """What file names call a data set: as it was given where that is a name, as in the public code."""
    return given if given.lower() == name.lower() else name
