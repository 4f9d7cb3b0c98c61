"""What a run's accuracy is compared with: random real images and the whole set, measured once, kept in its folder."""

import dataclasses
import json
from collections.abc import Mapping

import torch

from fastdm.applications.report.reading import RunRecord
from fastdm.data.pool import Dataset, Pool
from fastdm.errors import FastDMError
from fastdm.evaluation.measure import measure
from fastdm.evaluation.protocol import Protocol
from fastdm.runs.run import BASELINES
from fastdm.synthetic.initial import random_selection, whole_set
from fastdm.synthetic.synthetic_set import SyntheticSet, check_compatible
from fastdm.system.files import writing

RANDOM, WHOLE_SET = "random real images", "whole set"
WHOLE_SET_EPOCHS = 200
"""As one trains on a whole set, whose epochs have far more updates than those of a condensed set."""


def measure_baselines(
    record: RunRecord, dataset: Dataset, device: torch.device, *, epochs: int | None = None, progress: bool = False
) -> None:
    """Evaluate random real images, those that the run's seed draws, and the whole set by the protocol of the run.

    The images are whole ones, as many as the set has, whatever its partition: the baseline that papers print.
    epochs: those of the whole set, by default the protocol's and at most `WHOLE_SET_EPOCHS`. What the folder keeps
    already is not measured again, except the whole set if other epochs are asked for. Raises FastDMError for a run that
    was not evaluated, and for a data set with other classes or images than the run's.
    """
    check_compatible(f"the run {record.name}", len(record.class_names), record.image_shape, dataset)
    if not record.protocol:
        raise FastDMError(f"{record.folder} was not evaluated, so baselines have no protocol to follow")
    kept = {name: evaluation.accuracies for name, evaluation in record.baselines.items()}
    if epochs not in (None, record.whole_set_epochs):
        kept.pop(WHOLE_SET, None)
    if len(kept) == 2:
        return
    try:
        protocol = Protocol(**record.protocol)
    except TypeError as error:
        raise FastDMError(f"the protocol in {record.folder} is damaged ({error})") from error
    few_epochs = epochs or min(WHOLE_SET_EPOCHS, protocol.epochs)
    candidates: Mapping[str, tuple[SyntheticSet | Pool, Protocol]] = {
        RANDOM: (random_selection(dataset, record.ipc, int(record.settings["seed"])), protocol),
        WHOLE_SET: (whole_set(dataset), dataclasses.replace(protocol, epochs=few_epochs)),
    }
    measured = {
        name: kept.get(name) or measure(images, dataset, how, device, progress=progress).accuracies
        for name, (images, how) in candidates.items()
    }
    content = {"protocol": record.protocol, "whole_set_epochs": few_epochs, "accuracies": measured}
    with writing(record.folder / BASELINES) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
