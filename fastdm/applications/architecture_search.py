"""Architecture search on a proxy (Zhao & Bilen, WACV 2023, section 4.4): how well small sets rank networks."""

import dataclasses
import itertools
import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch

from fastdm.applications.report.reading import read_log
from fastdm.applications.result_file import ResultFile
from fastdm.condensation.loop import condense_resolved, fingerprint, normalised
from fastdm.condensation.settings import Settings
from fastdm.data.pool import Dataset, Pool
from fastdm.errors import FastDMError, one_of, unknown, whole_number
from fastdm.evaluation.measure import measure
from fastdm.evaluation.protocol import Protocol
from fastdm.networks.architectures import convnet_name
from fastdm.runs.log import FILE as LOG
from fastdm.runs.options import RunOptions
from fastdm.synthetic.initial import random_selection
from fastdm.synthetic.synthetic_set import SyntheticSet
from fastdm.system.device import undisturbed
from fastdm.system.files import locked, make_folder, writing
from fastdm.system.ranks import Ranks, shared

SPACE: Mapping[str, tuple[Any, ...]] = {
    "depth": (1, 2, 3, 4),
    "width": (32, 64, 128, 256),
    "activation": ("sigmoid", "relu", "leakyrelu"),
    "norm": ("none", "batch", "layer", "instance", "group"),
    "pool": ("none", "max", "avg"),
}
"""The paper's 720 ConvNets: every combination, in the order of `convnet_name`."""

WHOLE_SET = "whole set"
PROXIES = ("condensed", "random", "early_stopped")
RESULTS, SUMMARY, CONDENSED = "search.json", "summary.json", "condensed"


def search_space(only: Mapping[str, Sequence[Any]] | None = None, count: int | None = None, seed: int = 0) -> list[str]:
    """Names of the ConvNets of `SPACE`, of those whose properties are among `only`, if it has such.

    count: as many of them, drawn by `seed`, in the order of the space. Raises FastDMError for values that are not in
    the space, and a count beyond it.

    >>> len(search_space()), search_space({"depth": [3], "width": [128], "norm": ["instance"], "pool": ["avg"]})[1]
    (720, 'ConvNet-d3-w128-relu-instance-avg')
    """
    only = only or {}
    for name, values in only.items():
        if name not in SPACE:
            raise unknown("property", name, SPACE)
        if not values:
            raise FastDMError(f"{name} has no values; name some of {', '.join(map(str, SPACE[name]))}")
        for value in values:
            one_of(name, value, SPACE[name])
    axes = [[value for value in values if value in only.get(name, values)] for name, values in SPACE.items()]
    names = [convnet_name(*values) for values in itertools.product(*axes)]
    if count is None:
        return names
    if not 2 <= count <= len(names):
        raise FastDMError(f"networks is {count}; it must be at least 2, and at most {len(names)}, which is all")
    chosen = sorted(random.Random(seed).sample(range(len(names)), count))
    return [names[place] for place in chosen]


@dataclass(frozen=True)
class Search:
    """What is compared: how `networks` rank after a training on each proxy, with how they rank on the whole set.

    Proxies: "condensed", by `settings`, which are resolved; "random", as many real images (canvases where `settings`
    have a partition: all proxies cost the same updates); "early_stopped", the whole set for about as many updates as a
    training on those takes, at least one epoch (two by the protocol dm, whose loop has one more than it is asked for).
    On each, `protocol.num_eval` networks of each architecture are trained by `protocol`; on the whole set, for
    `whole_set_epochs` epochs.

    Raises FastDMError for what makes no sense, and networks that cannot take the images.
    """

    dataset: Dataset
    settings: Settings
    protocol: Protocol
    networks: Sequence[str]
    proxies: Sequence[str] = PROXIES
    whole_set_epochs: int = 200

    def __post_init__(self) -> None:
        whole_number("whole_set_epochs", self.whole_set_epochs, 1)
        if len(set(self.networks)) < 2:
            raise FastDMError("a search needs at least two networks to rank")
        if not self.proxies:
            raise FastDMError(f"there is no proxy; name some of {', '.join(PROXIES)}")
        for proxy in self.proxies:
            one_of("proxy", proxy, PROXIES)
        protocol = dataclasses.replace(self.protocol, networks=self.networks)
        protocol.check(self.dataset)
        for proxy in (*self.proxies, WHOLE_SET):
            protocol.check_batches(self._training_images(proxy), self.dataset)

    @property
    def proxy_images(self) -> int:
        """Images that the condensed and the random proxy hold."""
        return self.dataset.num_classes * self.settings.ipc

    def _training_images(self, proxy: str) -> int:
        """Images of an epoch on a proxy, or on the whole set."""
        if proxy in ("early_stopped", WHOLE_SET):
            return len(self.dataset.train)
        return self.proxy_images * self.settings.partition**2

    def protocol_on(self, proxy: str) -> Protocol:
        """How networks are trained on a proxy, or on the whole set."""
        if proxy == WHOLE_SET:
            return dataclasses.replace(self.protocol, epochs=self.whole_set_epochs)
        if proxy != "early_stopped":
            return self.protocol
        updates = self.protocol.steps(self._training_images("condensed"))
        per_epoch = -(-self._training_images(proxy) // self.protocol.batch)
        epochs = round(updates / per_epoch) - (self.protocol.name == "dm")
        return dataclasses.replace(self.protocol, epochs=max(1, epochs))

    def key(self) -> dict[str, Any]:
        """What results must have been found with to belong together; networks and proxies may become more."""
        return {
            **fingerprint(self.dataset),
            **normalised(self.dataset),
            "settings": dataclasses.asdict(self.settings),
            "protocol": {**dataclasses.asdict(self.protocol), "networks": []},
            "whole_set_epochs": self.whole_set_epochs,
        }


@undisturbed()
def run_search(
    what: Search,
    device: torch.device,
    *,
    save_path: Path,
    resume: bool = False,
    overwrite: bool = False,
    report: Callable[[Mapping[str, Any]], None] = lambda record: None,
    progress: bool = False,
) -> dict[str, dict[str, Any]]:
    """Train all networks on all proxies and the whole set; returns what each proxy is worth, see `summary`.

    save_path: folder for a record of each network on each (search.json), their summary (summary.json) and the run
    folder of the condensation; resume continues from what it holds, also with further networks and proxies. report:
    called with each record. Ranks share the classes of the condensation, and the networks.
    """
    make_folder(save_path)
    with shared() as ranks, locked(save_path / ".search.lock", str(save_path)) if ranks.first else nullcontext():
        results = ResultFile(
            save_path / RESULTS,
            what.key(),
            resume=resume,
            overwrite=overwrite,
            older=normalised(what.dataset),
            writes=ranks.first,
        )
        condensing = 0.0
        for proxy in (*what.proxies, WHOLE_SET):
            images: SyntheticSet | Pool = what.dataset.train
            if proxy == "condensed":
                options = RunOptions(
                    save_path=save_path / CONDENSED, resume=resume, overwrite=overwrite, progress=progress
                )
                images = condense_resolved(what.dataset, what.settings, device, options)
                if ranks.first:
                    _, condensing = read_log(save_path / CONDENSED / LOG)
            elif proxy == "random":
                images = random_selection(
                    what.dataset, what.settings.ipc, what.settings.seed, partition=what.settings.partition
                )
            _train_all(what, proxy, images, results, device, report, progress, ranks)
        found = summary(what, results.records, condensing)
        if ranks.first:
            with writing(save_path / SUMMARY) as temporary:
                temporary.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        return found


def _train_all(
    what: Search,
    proxy: str,
    images: SyntheticSet | Pool,
    results: ResultFile,
    device: torch.device,
    report: Callable[[Mapping[str, Any]], None],
    progress: bool,
    ranks: Ranks,
) -> None:
    """Train and test every network on one set of images, as many at once as are trained side by side."""
    for name in what.networks:
        if (record := results.find(proxy=proxy, network=name)) is not None:
            report(record)
    names = [name for name in what.networks if results.find(proxy=proxy, network=name) is None]
    at_once = max(1, torch.get_num_threads() // what.protocol.num_eval) if device.type == "cpu" else 1
    at_once = min(ranks.exchange(at_once)) * ranks.size
    for group in (names[first : first + at_once] for first in range(0, len(names), at_once)):
        began = time.perf_counter()
        protocol = dataclasses.replace(what.protocol_on(proxy), networks=group)
        found = measure(images, what.dataset, protocol, device, progress=progress)
        seconds = (time.perf_counter() - began) / len(group)
        for name in group:
            report(results.add(proxy=proxy, network=name, accuracies=found.accuracies[name], seconds=seconds))


def summary(what: Search, records: Sequence[Mapping[str, Any]], condensing: float) -> dict[str, dict[str, Any]]:
    """What each proxy is worth, and the whole set.

    best: the network that is best on it; accuracy: what that network reaches on the whole set, mean over its trainings;
    spearman: the rank correlation of the accuracies of all networks on it and on the whole set, None where all are
    equal; seconds: of all trainings, with the condensation, which took `condensing`; images: how many it stores.
    """
    wanted = [record for record in records if record["network"] in what.networks]
    means = {(record["proxy"], record["network"]): fmean(record["accuracies"]) for record in wanted}
    whole = [means[WHOLE_SET, name] for name in what.networks]
    found = {}
    for proxy in (*what.proxies, WHOLE_SET):
        values = [means[proxy, name] for name in what.networks]
        place = int(np.argmax(values))
        seconds = sum(record["seconds"] for record in wanted if record["proxy"] == proxy)
        found[proxy] = {
            "best": what.networks[place],
            "accuracy": whole[place],
            "spearman": spearman(values, whole),
            "seconds": seconds + (condensing if proxy == "condensed" else 0.0),
            "images": what.proxy_images if proxy in ("condensed", "random") else len(what.dataset.train),
        }
    return found


def spearman(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Spearman's rank correlation: Pearson's of the ranks, equal values sharing the mean of theirs; None where all
    values of one are equal.

    >>> spearman([1, 2, 3, 4], [10, 20, 40, 30])
    0.8
    """
    ranks = []
    for values in (np.asarray(first), np.asarray(second)):
        below, equal = (values[:, None] > values).sum(1), (values[:, None] == values).sum(1)
        rank = below + (equal - 1) / 2
        ranks.append(rank - rank.mean())
    scale = float(np.sqrt((ranks[0] ** 2).sum() * (ranks[1] ** 2).sum()))
    return float((ranks[0] * ranks[1]).sum()) / scale if scale else None
