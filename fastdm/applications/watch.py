"""What is seen of a run on its way: the public code's pictures, and evaluations where they are asked for."""

import json
from collections.abc import Callable
from pathlib import Path

import torch

from fastdm.data.pool import Dataset
from fastdm.evaluation.measure import measure
from fastdm.evaluation.outcome import Evaluation
from fastdm.evaluation.protocol import Protocol
from fastdm.runs.events import FOLDER as EVENTS
from fastdm.runs.events import Events
from fastdm.runs.run import EVALUATIONS as FILE
from fastdm.synthetic.synthetic_set import SyntheticSet
from fastdm.system.checks import parse_json
from fastdm.system.files import writing
from fastdm.system.ranks import ALONE, Ranks

PICTURE_EVERY = 2000
"""Iterations between the pictures of the public code, the first of them of the initial images."""


class Watch:
    """Looks at a run: a picture called `picture`{iteration}.png every 2,000 iterations, and evaluations.

    ranks: of which the first one writes what it sees; all of them evaluate.
    """

    def __init__(
        self,
        dataset: Dataset,
        device: torch.device,
        folder: Path,
        picture: Path,
        report: Callable[[str, Evaluation], None],
        *,
        ranks: Ranks = ALONE,
    ) -> None:
        self._dataset = dataset
        self._device = device
        self._folder = folder
        self._picture = picture
        self._report = report
        self._ranks = ranks
        self._protocol: Protocol | None = None
        self._iterations = range(0)
        self._title = ""

    def evaluate(self, protocol: Protocol, iterations: range, title: str) -> None:
        """Also evaluate the set by `protocol`, after these numbers of iterations."""
        self._protocol, self._iterations, self._title = protocol, iterations, title

    def wants(self, iteration: int) -> bool:
        return iteration % PICTURE_EVERY == 0 or self._is_due(iteration)

    def look(self, iteration: int, synthetic: SyntheticSet) -> None:
        if iteration % PICTURE_EVERY == 0:
            self.picture(iteration, synthetic)
        if self._protocol is not None and self._is_due(iteration):
            evaluation = measure(synthetic, self._dataset, self._protocol, self._device)
            if self._ranks.first:
                self._record(iteration, evaluation)
            self._report(f"{self._title}, iteration {iteration}", evaluation)
            self.show(iteration, evaluation)

    def _is_due(self, iteration: int) -> bool:
        """Whether an evaluation is asked for, and not yet recorded, as the first rank knows."""
        if iteration not in self._iterations:
            return False
        path = self._folder / FILE
        lines = path.read_bytes().splitlines() if self._ranks.first and path.exists() else []
        recorded = any(parse_json(line)["iteration"] == iteration for line in lines)
        return not self._ranks.exchange(recorded)[0]

    def _record(self, iteration: int, evaluation: Evaluation) -> None:
        line = {"iteration": iteration, "mean": evaluation.mean, "accuracies": evaluation.accuracies}
        path = self._folder / FILE
        with writing(path) as temporary:
            before = path.read_bytes().splitlines(keepends=True) if path.exists() else []
            whole = [each for each in before if each.endswith(b"\n")]  # an earlier version could leave half a line
            temporary.write_bytes(b"".join([*whole, json.dumps(line).encode() + b"\n"]))

    def picture(self, iteration: int, synthetic: SyntheticSet) -> None:
        """Write a picture of the set as it is after so many iterations."""
        if self._ranks.first:
            synthetic.save_grid(self._picture.with_name(f"{self._picture.name}{iteration}.png"))

    def show(self, iteration: int, evaluation: Evaluation) -> None:
        """Show what was measured in TensorBoard, if the run is shown there."""
        if self._ranks.first and (self._folder / EVENTS).exists():
            events = Events(self._folder)
            events.accuracies(iteration, evaluation.mean)
            events.close()
