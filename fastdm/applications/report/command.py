"""The command that repeats a run."""

import shlex
from collections.abc import Mapping
from typing import Any

from fastdm.applications.report.reading import RunRecord
from fastdm.data.named import NAMES
from fastdm.networks.architectures import evaluation_pool, network_names

_FLAGS = {"iterations": "Iteration", "network": "model", "strategy": "dsa_strategy"}
"""Settings whose flags are the public code's."""

_PROTOCOL = {
    "name": "protocol",
    "num_eval": "num_eval",
    "epochs": "epoch_eval_train",
    "lr_net": "lr_net",
    "batch_train": "batch_train",
    "checks": "checks",
}

_EVAL_MODES = ("S", "M", "B", "W", "D", "A", "P", "N")


def repeating_command(record: RunRecord) -> str:
    """`fastdm condense` with every setting of the run, and the protocol of its evaluation."""
    dataset = record.dataset if record.dataset in NAMES else f"path/to/{record.dataset}"
    parts = ["fastdm", "condense", "--dataset", dataset, "--num_exp", "1"]
    for name, value in record.settings.items():
        parts += _flag(_FLAGS.get(name, name), value)
    if record.settings.get("networks") == "trained":
        parts += ["--pool", "path/to/pool"]
    protocol: Mapping[str, Any] = record.protocol or {"num_eval": 0}
    for name, flag in _PROTOCOL.items():
        if name in protocol:
            parts += _flag(flag, protocol[name])
    network = str(record.settings.get("network"))
    if network in network_names() and list(protocol.get("networks", [network])) != [network]:
        modes = (mode for mode in _EVAL_MODES if [*evaluation_pool(mode, network)] == list(protocol["networks"]))
        parts += _flag("eval_mode", next(modes, None))
    return shlex.join(parts)


def _flag(name: str, value: object) -> list[str]:
    if value is False and name == "clamp":  # which may be on by default
        return ["--no_clamp"]
    if value is None or value is False:
        return []
    return [f"--{name}"] if value is True else [f"--{name}", str(value)]
