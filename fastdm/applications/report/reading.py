"""What run folders hold, as a report needs it. Nothing here is trusted to be complete: a run may still be going on."""

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastdm.errors import FastDMError, whole_number
from fastdm.evaluation.outcome import Evaluation
from fastdm.runs.about import About
from fastdm.runs.log import FILE as LOG
from fastdm.runs.run import BASELINES, EVALUATION, SET, SETTINGS
from fastdm.runs.run import EVALUATIONS as DURING
from fastdm.synthetic.synthetic_set import SyntheticSet
from fastdm.system.checks import parse_json
from fastdm.system.files import user_path


@dataclass(frozen=True)
class RunRecord:
    """One run.

    settings: those of the run; synthetic: its set, None if it has not ended; losses: (iteration, loss) in order;
    seconds: of all its sessions; pictures: (iteration, file) in order; protocol, evaluation: how its set was evaluated
    and what that gave; during: (iteration, evaluation) of those on the way; baselines: evaluations of other sets by the
    same protocol, by name; profile: what `fastdm profile` measured; evaluation_seconds: what the evaluation took;
    whole_set_epochs: those of the baseline. The last two are None where the folder does not say.
    """

    name: str
    folder: Path
    settings: Mapping[str, Any]
    about: About
    synthetic: SyntheticSet | None
    losses: list[tuple[int, float]]
    seconds: float
    pictures: list[tuple[int, Path]]
    protocol: Mapping[str, Any]
    evaluation: Evaluation
    during: list[tuple[int, Evaluation]]
    baselines: Mapping[str, Evaluation]
    profile: Mapping[str, Any]
    evaluation_seconds: float | None = None
    whole_set_epochs: int | None = None

    @property
    def dataset(self) -> str:
        return str(self.about.dataset["name"])

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(map(str, self.about.dataset["class_names"]))

    @property
    def image_shape(self) -> tuple[int, int, int]:
        channels, height, width = self.about.dataset["image_shape"]
        return channels, height, width

    @property
    def protocol_name(self) -> str:
        return str(self.protocol.get("name", "dm"))

    @property
    def partition(self) -> int:
        return int(self.settings.get("partition", 1))

    @property
    def loss_is(self) -> str:
        """What the loss of an iteration is, in words."""
        matched = {
            "cov": "the squared distances between class means and between class covariances of features",
            "mmd": "the squared maximum mean discrepancy of features, with a Gaussian kernel",
        }
        text = matched.get(str(self.settings.get("objective")), "the squared distance between class means of features")
        weight = self.settings.get("ce_weight")
        return f"the mean over classes of {text}" + (
            f", and {weight:g} times the cross-entropy of the synthetic images in trained networks" if weight else ""
        )

    @property
    def ipc(self) -> int:
        return int(self.settings["ipc"])

    @property
    def iterations(self) -> int:
        """Iterations done, as far as the log goes."""
        return self.losses[-1][0] + 1 if self.losses else 0

    @property
    def warnings(self) -> list[str]:
        """What a reader should know before trusting the run."""
        notes = [*self.about.notes]
        wanted = int(self.settings.get("iterations", 0))
        made = None if self.synthetic is None else self.synthetic.settings.get("iterations", wanted)
        if made != wanted:
            its_set = "" if made is None else f", and the set is that of {made}"
            notes.append(f"the run has not ended: {self.iterations} of {wanted} iterations are logged{its_set}")
        return notes

    def mean_loss(self, *, first: bool, of: int = 25) -> float | None:
        """The mean of the first or last losses; None without any."""
        losses = [loss for _, loss in (self.losses[:of] if first else self.losses[-of:])]
        return statistics.fmean(losses) if losses else None


def find_runs(paths: Iterable[Path]) -> list[Path]:
    """The run folders that are meant: each path itself, or those directly below it.

    Raises FastDMError for a path with neither.
    """
    found: list[Path] = []
    for path in map(user_path, paths):
        runs = [path] if (path / SETTINGS).is_file() else []
        if not runs and path.is_dir():
            runs = sorted(entry for entry in path.iterdir() if (entry / SETTINGS).is_file())
        if not runs:
            raise FastDMError(
                f"{path} is neither a run folder, which has a {SETTINGS}, nor a folder of run folders; name what "
                "condense wrote under its save_path"
            )
        found.extend(run for run in runs if run not in found)
    return found


def read_run(folder: Path, name: str = "") -> RunRecord:
    """What a run folder holds. Raises FastDMError, naming the file, for one that is damaged."""
    settings = _object(folder / SETTINGS)
    synthetic = SyntheticSet.load(folder / SET) if (folder / SET).exists() else None
    about = About.read(folder) or _about_of(folder, synthetic)
    _numbers(folder / SETTINGS, settings, ("ipc", "seed", "iterations"))
    losses, seconds = read_log(folder / LOG)
    measured = _object(folder / EVALUATION)
    if synthetic is not None and measured.get("set_crc32", crc := synthetic.crc32()) != crc:
        measured = {}  # of another set: the run was resumed with more iterations
    protocol = _member(folder / EVALUATION, measured, "protocol")
    if protocol:
        _numbers(folder / EVALUATION, protocol, ("num_eval", "epochs"))
    baselines = _object(folder / BASELINES)
    same_protocol = baselines.get("protocol") == measured.get("protocol")
    record = RunRecord(
        name=name or folder.resolve().name,
        folder=folder,
        settings=settings,
        about=about,
        synthetic=synthetic,
        losses=losses,
        seconds=seconds,
        pictures=_pictures(folder),
        protocol=protocol,
        evaluation=_evaluation(folder / EVALUATION, measured),
        during=_during(folder / DURING),
        baselines={
            what: _evaluation(folder / BASELINES, {"accuracies": accuracies})
            for what, accuracies in _member(folder / BASELINES, baselines, "accuracies").items()
            if same_protocol
        },
        profile=_object(folder / "profile.json") or _object(folder / "profile" / "profile.json"),
        evaluation_seconds=_number(folder / EVALUATION, measured, "seconds"),
        whole_set_epochs=_number(folder / BASELINES, baselines, "whole_set_epochs") if same_protocol else None,
    )
    shape = None if synthetic is None else (synthetic.num_classes, synthetic.ipc, *synthetic.images.shape[1:])
    if shape not in (None, (len(record.class_names), record.ipc, *record.image_shape)):
        raise FastDMError(f"{folder / SET} is not the set that the other files of {folder} describe")
    return record


def read_log(log: Path) -> tuple[list[tuple[int, float]], float]:
    """(iteration, loss) of every line with a loss, and the seconds of all sessions.

    The clock starts anew when a run is resumed. A last line that is cut short is not counted.
    """
    losses, seconds, before = [], 0.0, 0.0
    lines = log.read_bytes().splitlines() if log.exists() else []
    for number, line in enumerate(lines, 1):
        try:
            entry = parse_json(line)
            if "loss" not in entry:
                continue
            losses.append((int(entry["iteration"]), float(entry["loss"])))
            now = float(entry["seconds"])
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            if number == len(lines):  # being written, or the run was killed
                break
            raise FastDMError(f"line {number} of {log} is damaged ({error})") from error
        if now < before:
            seconds += before
        before = now
    return losses, seconds + before


def _during(path: Path) -> list[tuple[int, Evaluation]]:
    """(iteration, evaluation) of every line; of an iteration that was evaluated twice, by a resumed run, the later."""
    found = {}
    for number, line in enumerate(path.read_bytes().splitlines() if path.exists() else [], 1):
        try:
            entry = parse_json(line)
            found[int(entry["iteration"])] = _evaluation(path, entry)
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            raise FastDMError(f"line {number} of {path} is damaged ({error})") from error
    return sorted(found.items())


def _object(path: Path) -> dict[str, Any]:
    """A JSON object from a file; empty if there is no file."""
    try:
        content = parse_json(path.read_bytes()) if path.exists() else {}
    except (OSError, ValueError) as error:
        raise FastDMError(f"{path} is damaged ({error})") from error
    if not isinstance(content, dict):
        raise FastDMError(f"{path} is damaged (it holds no JSON object)")
    return content


def _member(path: Path, content: Mapping[str, Any], name: str) -> dict[str, Any]:
    """An object in the object that a file holds; empty if it is not there."""
    member = content.get(name, {})
    if not isinstance(member, dict):
        raise FastDMError(f"{path} is damaged (its {name} is not a JSON object)")
    return member


def _numbers(path: Path, content: Mapping[str, Any], names: Iterable[str]) -> None:
    """Raise FastDMError unless the object that a file holds has whole numbers of these names."""
    try:
        for name in names:
            whole_number(name, content.get(name), 0)
    except FastDMError as error:
        raise FastDMError(f"{path} is damaged ({error})") from error


def _number(path: Path, content: Mapping[str, Any], name: str) -> Any:
    """The number of this name in a file, None if it has none."""
    value = content.get(name)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise FastDMError(f"{path} is damaged ({name} is {value!r}; it must be a number)")
    return value


def _about_of(folder: Path, synthetic: SyntheticSet | None) -> About:
    if synthetic is None:
        raise FastDMError(f"{folder} has neither about.json nor a finished set to show; let the run end first")
    return About(
        {
            "name": synthetic.dataset,
            "class_names": synthetic.class_names,
            "image_shape": synthetic.images.shape[1:],
            "mean": synthetic.mean,
            "std": synthetic.std,
        }
    )


def _pictures(folder: Path) -> list[tuple[int, Path]]:
    numbered = [(path.stem.removeprefix("iteration_"), path) for path in folder.glob("iteration_*.png")]
    return sorted((int(number), path) for number, path in numbered if number.isdecimal())


def _evaluation(path: Path, content: Mapping[str, Any]) -> Evaluation:
    try:
        return Evaluation.from_json(content)
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise FastDMError(f"{path} is damaged ({error})") from error
