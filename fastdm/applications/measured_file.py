"""All sets of a file evaluated, with what to compare them with."""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import torch

from fastdm.data.pool import Dataset, Pool
from fastdm.errors import FastDMError
from fastdm.evaluation.measure import check_labels, measure, measure_soft
from fastdm.evaluation.outcome import Evaluation
from fastdm.evaluation.protocol import Protocol
from fastdm.networks.trained import NetworkPool
from fastdm.synthetic.initial import random_selection, whole_set
from fastdm.synthetic.synthetic_set import SyntheticSet
from fastdm.system.files import make_folder, reason, writing

WHOLE_SET_EPOCHS = 200
"""As one trains on a whole set, whose epochs have far more updates than those of a condensed set."""


def load_sets(
    file: Path,
    dataset: Dataset,
    experiment: int | None,
    normalised: bool | None = None,
    partition: int | None = None,
) -> dict[int, SyntheticSet]:
    """The sets of a file by their numbers: all, or that of one experiment.

    normalised, partition: as in `SyntheticSet.load`.
    """
    if experiment is None:
        return dict(enumerate(SyntheticSet.load_all(file, dataset=dataset, normalised=normalised, partition=partition)))
    one = SyntheticSet.load(file, experiment=experiment, dataset=dataset, normalised=normalised, partition=partition)
    return {experiment: one}


def measured_sets(
    file: Path,
    sets: Mapping[int, SyntheticSet],
    dataset: Dataset,
    protocol: Protocol,
    device: torch.device,
    *,
    labels: str = "hard",
    pool: NetworkPool | None = None,
    several: bool = False,
    baselines: bool = False,
    whole_set_epochs: int | None = None,
) -> Iterator[tuple[str, Evaluation]]:
    """Evaluate each set, number e with the protocol's seed + e; give each result, with a title, as soon as it is there.

    labels, pool: as in `fastdm.evaluate`; after a set with soft labels the random images follow that the same networks
    labelled. several: whether titles name the numbers of the sets. After the last of several sets, all of them
    together. baselines: then random real images, as many, and the whole set, for `whole_set_epochs` epochs, by default
    the protocol's and at most `WHOLE_SET_EPOCHS`.
    """
    check_labels(labels, pool)
    found = []
    for number, synthetic in sets.items():
        title = f"{file}, set {number}" if several else str(file)
        how = replace(protocol, seed=protocol.seed + number)
        if labels == "soft":
            found.append(measure_soft(synthetic, dataset, how, device, pool, progress=True))
        else:
            found.append(measure(synthetic, dataset, how, device, progress=True))
        yield title, found[-1]
        if (random := found[-1].random) is not None:
            yield f"{title}: random real images, labels of the same networks", random
    if len(sets) > 1:
        yield f"{file}, all {len(sets)} sets", Evaluation.pooled(found)
    if not baselines:
        return
    ipc = next(iter(sets.values())).ipc
    few_epochs = replace(protocol, epochs=whole_set_epochs or min(WHOLE_SET_EPOCHS, protocol.epochs))
    others: list[tuple[str, SyntheticSet | Pool, Protocol]] = [
        ("random real images", random_selection(dataset, ipc, protocol.seed), protocol),
        ("whole set", whole_set(dataset), few_epochs),
    ]
    for title, images, how in others:
        if labels == "soft" and isinstance(images, SyntheticSet):
            yield title, measure_soft(images, dataset, how, device, pool, progress=True)
        else:
            yield title, measure(images, dataset, how, device, progress=True)


def write_measured(path: Path, dataset: Dataset, evaluations: Mapping[str, Evaluation]) -> None:
    """Write all that was measured as JSON: by title what `Evaluation.summary` gives, confusion matrices too."""
    content = {
        "dataset": dataset.name,
        "class_names": dataset.class_names,
        "evaluations": {title: evaluation.summary() for title, evaluation in evaluations.items()},
    }
    with writing(path) as temporary:
        temporary.write_text(json.dumps(content) + "\n", encoding="utf-8")


MARK = '"evaluations": {'
"""What tells a file of `write_measured` from others."""

_MARK_BYTES = 1 << 20


def check_writable(path: Path, mark: str = MARK) -> None:
    """Raise FastDMError now, before hours of training, for a file that could not be written then.

    mark: what stands in the first part of a file that may be replaced, one that the same command wrote.
    """
    if path.is_dir():
        raise FastDMError(f"{path} is a folder; name a file in it")
    make_folder(path.parent)
    if not os.path.isfile(path):
        return
    try:
        with path.open("rb") as file:
            begin = file.read(_MARK_BYTES)
    except OSError as error:
        raise FastDMError(f"{path} cannot be replaced: {reason(error)}") from error
    if begin and mark.encode() not in begin:
        raise FastDMError(f"{path} is there already and was not written by this command; name another file")
