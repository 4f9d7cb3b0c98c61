"""Names, ops, files and commands that programs rely on stay where they are."""

import importlib
import subprocess
import sys

import pytest
import torch

NAMES = {
    "fastdm": "condense evaluate export open_dataset pack random_selection whole_set Settings SyntheticSet DiffAugment "
    "ParamDiffAug FastDMError __version__",
    "fastdm.compat": "DiffAugment ParamDiffAug",
    "fastdm.data": "Dataset Pool open_dataset",
    "fastdm.networks": "build_network build_convnet network_names",
    "fastdm.kernels": "dsa norm_relu_pool norm_relu_pool_mean conv_norm_relu_pool class_mean_difference uniform draw "
    "uniform_weights draw_tables sgd_step use_backend table",
    "fastdm._native": "gather",
}
OPS = (
    "dsa dsa_backward norm_relu_pool norm_relu_pool_backward norm_relu_pool_mean conv_norm_relu_pool "
    "conv_norm_relu_pool_backward class_mean_difference class_mean_difference_backward uniform draw"
)


@pytest.mark.parametrize(("module", "names"), NAMES.items())
def test_a_public_name_stays_where_it_is(module: str, names: str) -> None:
    imported = importlib.import_module(module)
    assert [name for name in names.split() if not hasattr(imported, name)] == []


def test_the_pool_keeps_its_methods() -> None:
    from fastdm.data import Pool

    assert all(callable(getattr(Pool, name)) for name in ("draw", "gather", "read", "stream", "to"))


def test_the_ops_stay_registered() -> None:
    import fastdm.kernels  # noqa: F401

    assert [name for name in OPS.split() if not hasattr(torch.ops.fastdm, name)] == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("fastdm", "--help"),
        *(
            ("fastdm", command, "--help")
            for command in (
                "condense",
                "continual",
                "evaluate",
                "export",
                "inspect",
                "pack",
                "profile",
                "report",
                "search",
            )
        ),
        ("fastdm.kernels.compile_check", "--help"),
    ],
    ids=" ".join,
)
def test_a_command_stays(arguments: tuple[str, ...]) -> None:
    assert "Usage" in _run(*arguments).title()


def _run(*arguments: str) -> str:
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


FLAGS = {
    "condense": "dataset model ipc eval_mode num_exp num_eval epoch_eval_train Iteration lr_img lr_net batch_real "
    "batch_train init dsa_strategy data_path image_size save_path dis_metric seed device precision backend aug_mode "
    "momentum chunk_memory compile deterministic small_classes profile resume overwrite save_every picture_every",
    "evaluate": "dataset model eval_mode num_eval epoch_eval_train lr_net batch_train dsa_strategy data_path "
    "image_size experiment baselines epoch_whole_set seed device",
    "export": "experiment overwrite measure dataset data_path image_size num_eval epoch_eval_train lr_net batch_train "
    "seed device",
    "inspect": "verify",
    "pack": "size filter fit workers on_error resume overwrite name data_path",
    "profile": "dataset model ipc batch_real iterations data_path save_path seed device precision backend chunk_memory",
    "report": "out dataset data_path image_size baselines epoch_whole_set png device",
}


@pytest.mark.parametrize(("command", "flags"), FLAGS.items())
def test_a_flag_stays(command: str, flags: str) -> None:
    shown = _run("fastdm", command, "--help")
    assert [flag for flag in flags.split() if f"--{flag}" not in shown] == []
