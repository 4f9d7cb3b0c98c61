"""Trainings and tests of an evaluation: one by one, or many at once as suits the device."""

import logging
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import torch
from torch import nn

from fastdm.data.pool import Dataset
from fastdm.evaluation.ensemble import side_by_side
from fastdm.evaluation.protocol import Protocol
from fastdm.evaluation.testing import Answers, classify_all
from fastdm.evaluation.together import Together, networks_together
from fastdm.evaluation.training import LabelledImages, Momentum, train_network
from fastdm.networks.architectures import build_network
from fastdm.networks.model import Network
from fastdm.networks.own import build_own
from fastdm.system.files import reason
from fastdm.system.progress import Progress

Job = tuple[str, int]
"""The name of a network, and which of the protocol's networks it is."""

_MOST_NETWORKS = 1 << 20
"""Networks of the user's own are seeded by seed · this + number."""


@dataclass(frozen=True)
class Trial:
    """The training of a network and its tests, as often as the protocol asks.

    examples: what networks are trained on; tests: what they are tested with; dtype: of the forward passes.
    """

    dataset: Dataset
    protocol: Protocol
    examples: LabelledImages
    tests: LabelledImages
    device: torch.device
    dtype: torch.dtype

    def __call__(self, job: Job, after_step: Callable[[], None]) -> list[Answers]:
        """Train one network; what it made of the test images each time that they were asked, the last at its end."""
        network = self.build(job)
        found = []

        def after(done: int, momentum: Momentum) -> None:
            if done in self._asked:
                found.extend(self._test(network))
            after_step()

        train_network(network, self.examples, self.protocol, job[1], self.dtype, after)
        return [*found, *self._test(network)]

    def together(self, jobs: Sequence[Job], after_step: Callable[[], None]) -> list[list[Answers]]:
        """The same of several networks of one architecture, by one graph; RuntimeError where there can be none."""
        networks = [self.build(job) for job in jobs]
        found: list[list[Answers]] = [[] for _ in jobs]
        numbered = [(number, net) for (_, number), net in zip(jobs, networks, strict=True) if isinstance(net, Network)]
        trainings = Together(numbered, self.examples, self.protocol, self.dtype)

        def after(done: int) -> None:
            if done in self._asked:
                test()
            for _ in jobs:
                after_step()

        def test() -> None:
            for answers, tested in zip(found, self._test(*networks), strict=True):
                answers.append(tested)

        trainings.run(after)
        test()
        return found

    def build(self, job: Job) -> nn.Module:
        """The network of a job; the weights of one that has a name are not drawn yet."""
        network = self.protocol.by_name()[job[0]]
        if not isinstance(network, str):
            seed = (self.protocol.seed * _MOST_NETWORKS + job[1]) % 2**63
            return build_own(network, seed, self.device, self.dataset.image_shape)
        channels, height, width = self.dataset.image_shape
        return build_network(
            network,
            channels=channels,
            num_classes=self.dataset.num_classes,
            image_size=(height, width),
            device=self.device,
            drawn=False,
        )

    @property
    def _asked(self) -> list[int]:
        """Numbers of updates after which the test images are asked, besides the end."""
        return self.protocol.measured_after(len(self.examples))[:-1]

    def _test(self, *networks: nn.Module) -> list[Answers]:
        answers = classify_all(networks, self.tests, self.dtype)
        for network in networks:
            network.train()
        return answers


Result = TypeVar("Result")


class Trainings(typing.Protocol[Result]):
    """What `train_all` trains, such as a `Trial`: a job by a call, or several of one architecture by one graph."""

    @property
    def device(self) -> torch.device: ...
    @property
    def protocol(self) -> Protocol: ...
    @property
    def examples(self) -> LabelledImages: ...
    def build(self, job: Job) -> nn.Module: ...
    def __call__(self, job: Job, after_step: Callable[[], None]) -> Result: ...
    def together(self, jobs: Sequence[Job], after_step: Callable[[], None]) -> list[Result]: ...


def train_all(
    trial: Trainings[Result], jobs: Sequence[Job], bar: Progress | None, where: Callable[[int, int], str]
) -> list[Result]:
    """The trial of every job, in their order: on a CPU side by side, on a GPU by graphs of as many as its memory holds.

    where: as in `side_by_side`.
    """
    if trial.device.type == "cpu":
        return side_by_side(trial, jobs, trial.device, bar, where)
    done, found = 0, []

    @lru_cache  # once for each cause
    def warn(cause: str) -> None:
        logging.getLogger("fastdm").warning("networks are trained one by one, not by a graph: %s", cause)

    def after_step() -> None:
        nonlocal done
        done += 1
        if bar is not None:
            bar.update(done, where(done, len(group)))

    for group, recorded in _groups(trial, jobs):
        before = done
        if recorded:
            try:
                found += trial.together(group, after_step)
                continue
            except RuntimeError as error:
                if done > before:
                    raise
                warn(reason(error))
        found += [trial(job, after_step) for job in group]
    return found


def _groups(trial: Trainings[Any], jobs: Sequence[Job]) -> Iterator[tuple[Sequence[Job], bool]]:
    """The jobs, in their order, as they are trained together: of one architecture each; and whether by a graph."""
    for name in dict.fromkeys(name for name, _ in jobs):
        of_name = [job for job in jobs if job[0] == name]
        network = trial.build(of_name[0])
        together = networks_together(network, trial.examples, trial.protocol) if isinstance(network, Network) else 0
        at_once = max(1, together)
        for first in range(0, len(of_name), at_once):
            yield of_name[first : first + at_once], together > 0
