"""Continual learning (Zhao & Bilen, WACV 2023, section 4.3): classes come in steps, and a memory keeps a few images."""

import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastdm.applications.line_plot import check_matplotlib, write_lines
from fastdm.applications.report.svg import Line
from fastdm.applications.result_file import ResultFile
from fastdm.condensation.loop import condense_resolved, fingerprint, normalised
from fastdm.condensation.settings import Settings
from fastdm.data.pool import Dataset
from fastdm.data.subset import of_classes
from fastdm.errors import FastDMError, one_of, whole_number
from fastdm.evaluation.measure import measure
from fastdm.evaluation.protocol import Protocol
from fastdm.evaluation.training import LabelledImages, train_network
from fastdm.networks.architectures import build_network
from fastdm.runs.options import RunOptions
from fastdm.synthetic.herding import herded_selection
from fastdm.synthetic.initial import random_selection
from fastdm.synthetic.synthetic_set import SyntheticSet
from fastdm.system.device import precision_context, undisturbed
from fastdm.system.files import locked, make_folder
from fastdm.system.ranks import Ranks, shared

METHODS = ("DM", "random", "herding")
RESULTS, PLOT = "continual.json", "continual.png"


def class_order(classes: int, number: int) -> list[int]:
    """The paper's order of classes of that number: the permutation of NumPy's generator with it as the seed.

    >>> class_order(5, 0)
    [2, 0, 1, 3, 4]
    """
    return [int(label) for label in np.random.RandomState(number).permutation(classes)]


@dataclass(frozen=True)
class Continual:
    """What is done: `orders` times all classes of a data set in `steps` steps, by each of the methods.

    In each step the images that represent its classes, `settings.ipc` of each, join the memory; `protocol.num_eval`
    networks are trained on the memory from scratch, and tested on the test images of all classes so far. DM: condensed
    by `settings`. random: real images. herding: real images by `herded_selection`, on features of a network trained for
    `herding_epochs` epochs on the images of the step.

    settings: resolved. Everything of order o has the seeds of settings and protocol + o. Raises FastDMError for what
    makes no sense.
    """

    dataset: Dataset
    settings: Settings
    protocol: Protocol
    methods: Sequence[str] = ("DM",)
    steps: int = 5
    orders: int = 5
    herding_epochs: int = 20

    def __post_init__(self) -> None:
        for name, value in (("steps", self.steps), ("orders", self.orders), ("herding_epochs", self.herding_epochs)):
            whole_number(name, value, 1)
        if not self.methods:
            raise FastDMError(f"there is no method; name some of {', '.join(METHODS)}")
        for method in self.methods:
            one_of("method", method, METHODS)
        if self.dataset.num_classes % self.steps:
            raise FastDMError(
                f"steps is {self.steps}, but {self.dataset.num_classes} classes cannot be divided evenly among them"
            )
        if self.dataset.num_classes // self.steps < 2 and "herding" in self.methods:
            raise FastDMError("herding trains a network on the classes of a step: there must be at least two in each")
        self.protocol.check(self.dataset)
        for step in range(1, self.steps + 1):
            seen = self.dataset.num_classes // self.steps * step
            self.protocol.check_batches(seen * self.settings.ipc, self.dataset)

    def step_classes(self, order: int) -> list[list[int]]:
        """The classes of each step."""
        classes, size = class_order(self.dataset.num_classes, order), self.dataset.num_classes // self.steps
        return [classes[first : first + size] for first in range(0, len(classes), size)]

    def key(self) -> dict[str, Any]:
        """What results must have been found with to belong together; the methods and the orders may become more."""
        return {
            **fingerprint(self.dataset),
            **normalised(self.dataset),
            "steps": self.steps,
            "herding_epochs": self.herding_epochs,
            "settings": dataclasses.asdict(self.settings),
            "protocol": dataclasses.asdict(self.protocol),
        }


@undisturbed()
def run_continual(
    what: Continual,
    device: torch.device,
    *,
    save_path: Path,
    resume: bool = False,
    overwrite: bool = False,
    report: Callable[[Mapping[str, Any]], None] = lambda record: None,
    progress: bool = False,
) -> list[dict[str, Any]]:
    """Do it, and return a record for each method, order and step: classes so far, and the accuracy of each network.

    save_path: folder for the records (continual.json), their curves (continual.png) and the sets of each step (DM: the
    run folders); resume continues from what it holds, also with further methods and orders. report: called with each
    record, also with those that are there. Ranks share the classes of a condensation, and the networks.
    """
    check_matplotlib()
    make_folder(save_path)
    with shared() as ranks, locked(save_path / ".continual.lock", str(save_path)) if ranks.first else nullcontext():
        results = ResultFile(
            save_path / RESULTS,
            what.key(),
            resume=resume,
            overwrite=overwrite,
            older=normalised(what.dataset),
            writes=ranks.first,
        )
        for method in what.methods:
            for order in range(what.orders):
                maker = _Maker(what, method, order, device, save_path, resume, overwrite, progress, ranks)
                _run_order(maker, results, report)
                if ranks.first:
                    write_lines(
                        save_path / PLOT, "classes", "test accuracy, %", curves(results.records), marker="o", whole=True
                    )
        return results.records


@dataclass(frozen=True)
class _Maker:
    """Makes the sets of the steps of one order by one method, and keeps them in a folder."""

    what: Continual
    method: str
    order: int
    device: torch.device
    folder: Path
    resume: bool
    overwrite: bool
    progress: bool
    ranks: Ranks

    def make(self, step: int) -> SyntheticSet:
        dataset = of_classes(self.what.dataset, self.what.step_classes(self.order)[step])
        settings = dataclasses.replace(self.what.settings, seed=self.what.settings.seed + self.order)
        place = self.folder / f"{self.method}_order{self.order}_step{step}"
        if self.method == "DM":
            options = RunOptions(save_path=place, resume=self.resume, overwrite=self.overwrite, progress=self.progress)
            return condense_resolved(dataset, settings, self.device, options)
        file = place.with_suffix(".safetensors")
        if self.ranks.first and not (self.resume and file.exists()):
            if self.method == "random":
                chosen = random_selection(dataset, settings.ipc, settings.seed)
            else:
                chosen = self._herded(dataset, settings)
            chosen.save(file)
        self.ranks.exchange(step)  # now it is there
        return SyntheticSet.load(file, dataset=dataset)

    def _herded(self, dataset: Dataset, settings: Settings) -> SyntheticSet:
        protocol = dataclasses.replace(
            self.what.protocol, epochs=self.what.herding_epochs, seed=self.what.protocol.seed + self.order
        )
        protocol.check_batches(len(dataset.train), dataset)
        channels, height, width = dataset.image_shape
        assert settings.network is not None
        network = build_network(
            settings.network,
            channels=channels,
            num_classes=dataset.num_classes,
            image_size=(height, width),
            device=self.device,
            drawn=False,
        )
        examples = LabelledImages.of(dataset.train, dataset.mean, dataset.std, self.device)
        with precision_context(protocol.precision, self.device) as dtype:
            train_network(network, examples, protocol, 0, dtype)
            network.eval()
            with torch.no_grad():
                return herded_selection(dataset, settings.ipc, lambda images: network.embed(images.to(self.device)))


def _run_order(maker: _Maker, results: ResultFile, report: Callable[[Mapping[str, Any]], None]) -> None:
    """All steps of one order of the classes by one method."""
    what, method, order = maker.what, maker.method, maker.order
    protocol = dataclasses.replace(what.protocol, seed=what.protocol.seed + order)
    seen: list[int] = []
    memory: list[SyntheticSet] = []
    for step, classes in enumerate(what.step_classes(order)):
        seen += classes
        record = results.find(method=method, order=order, step=step)
        if record is None:
            memory += [maker.make(number) for number in range(len(memory), step + 1)]
            dataset = of_classes(what.dataset, seen)
            found = measure(_joined(memory, dataset), dataset, protocol, maker.device, progress=maker.progress)
            (accuracies,) = found.accuracies.values()
            record = results.add(method=method, order=order, step=step, classes=len(seen), accuracies=accuracies)
        report(record)


def _joined(memory: Sequence[SyntheticSet], dataset: Dataset) -> SyntheticSet:
    """The sets of all steps as one of the classes of `dataset`."""
    return dataclasses.replace(
        memory[0], images=torch.cat([part.images for part in memory]), class_names=dataset.class_names
    )


def table(records: Sequence[Mapping[str, Any]]) -> dict[str, dict[int, tuple[float, float]]]:
    """Mean and standard deviation over the orders, by method and number of classes, of what their networks reach."""
    found: dict[str, dict[int, list[float]]] = {}
    for record in records:
        of_method = found.setdefault(record["method"], {})
        of_method.setdefault(record["classes"], []).append(statistics.fmean(record["accuracies"]))
    return {
        method: {classes: (statistics.fmean(each), statistics.pstdev(each)) for classes, each in sorted(steps.items())}
        for method, steps in found.items()
    }


def curves(records: Sequence[Mapping[str, Any]]) -> list[Line]:
    """The accuracy in percent over the classes so far, a line for each method with its spread over the orders."""
    lines = []
    for method, steps in table(records).items():
        means, stds = ([100 * each[place] for each in steps.values()] for place in (0, 1))
        low = [mean - std for mean, std in zip(means, stds, strict=True)]
        high = [mean + std for mean, std in zip(means, stds, strict=True)]
        lines.append(Line(method, METHODS.index(method), [*steps], means, low, high))
    return lines
