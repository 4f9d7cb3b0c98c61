"""What the public main_DM.py does: condense several sets, evaluate each, write the public code's files."""

import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from fastdm.applications.watch import Watch
from fastdm.condensation.loop import condense_resolved
from fastdm.condensation.settings import Settings
from fastdm.data.pool import Dataset
from fastdm.errors import FastDMError
from fastdm.evaluation.measure import measure
from fastdm.evaluation.outcome import Evaluation
from fastdm.evaluation.protocol import Protocol
from fastdm.networks.trained import NetworkPool
from fastdm.runs.options import RunOptions
from fastdm.runs.run import EVALUATION as FILE
from fastdm.synthetic.synthetic_set import SyntheticSet, save_public
from fastdm.system.checks import parse_json
from fastdm.system.files import locked, make_folder, user_path, writing
from fastdm.system.ranks import Ranks, shared


def run_experiments(
    dataset: Dataset,
    settings: Settings,
    protocol: Protocol | None,
    device: torch.device,
    *,
    num_exp: int,
    save_path: Path,
    options: RunOptions,
    report: Callable[[str, Evaluation], None],
    report_total: Callable[[Evaluation], None] = lambda evaluation: None,
    name: str | None = None,
    eval_every: int | None = None,
    pool: NetworkPool | None = None,
) -> Path:
    """Condense `num_exp` sets with the seeds seed, seed + 1, …, and evaluate each by `protocol`, if there is one.

    settings: resolved. protocol: experiment e is evaluated with its seed + e. report: called with a title and what was
    measured; report_total: at the end, with the networks of all experiments together. name: what file names call the
    data set. eval_every: iterations between further evaluations, during the run. options: of every run, but for
    its save_path and observer.

    Writes under save_path a run folder per experiment, pictures of each set as the public code does, and `res_DM_….pt`:
    that one after each condensation and again after each evaluation, with all sets that there are and what was measured
    of them. With `resume`, an evaluation of the same set by the same protocol is not repeated. Returns the path of that
    file. Raises FastDMError, before the first iteration, for an evaluation that cannot be done, if another process
    writes the same files, and for such a file that none of the run folders goes with, without `overwrite`.
    """
    if protocol is not None:
        protocol.check(dataset)
        protocol.check_batches(dataset.num_classes * settings.ipc * settings.partition**2, dataset)
    elif eval_every is not None:
        raise FastDMError("eval_every needs networks to evaluate with: num_eval is 0")
    save_path = user_path(save_path)
    stem = f"DM_{file_name(name or dataset.name)}_{settings.network}_{settings.ipc}ipc"
    runs = {save_path / f"{stem}_exp{e}": dataclasses.replace(settings, seed=settings.seed + e) for e in range(num_exp)}
    experiments = _Experiments([*runs], save_path / f"res_{stem}.pt")
    evaluations = []
    with shared() as ranks, experiments.kept(ranks, save_path, stem):
        if ranks.first and not options.overwrite:
            experiments.check_own()
        if options.resume:
            experiments.load(dataset, runs)
        for experiment, (folder, seeded) in enumerate(runs.items()):
            its_protocol = protocol and dataclasses.replace(protocol, seed=protocol.seed + experiment)
            picture = save_path / f"vis_{stem}_exp{experiment}_iter"
            watch = Watch(dataset, device, folder, picture, report, ranks=ranks)
            if its_protocol is not None and eval_every is not None:
                watch.evaluate(
                    its_protocol, range(eval_every, settings.iterations, eval_every), f"experiment {experiment}"
                )
            its_options = dataclasses.replace(options, save_path=folder, observer=watch)
            experiments.sets.pop(folder, None)  # it is condensed again: nobody is to hold it twice
            synthetic = condense_resolved(dataset, seeded, device, its_options, pool)
            watch.picture(settings.iterations, synthetic)
            experiments.sets[folder] = synthetic
            if ranks.first and read_evaluation(folder, synthetic) is None:  # it is of the set of fewer iterations
                with suppress(OSError):
                    (folder / FILE).unlink()
            experiments.write()  # an evaluation takes long: whatever becomes of it, the set is there
            if its_protocol is None:
                continue
            title = f"experiment {experiment}"
            evaluation = read_evaluation(folder, synthetic, its_protocol) if options.resume else None
            if all(ranks.exchange(evaluation is not None)) and evaluation is not None:
                title += ", measured before"
            else:
                began = time.monotonic()
                evaluation = measure(synthetic, dataset, its_protocol, device, progress=options.progress)
                if ranks.first:
                    write_evaluation(folder, synthetic, its_protocol, evaluation, time.monotonic() - began)
                experiments.write()
                if options.tensorboard:
                    watch.show(settings.iterations, evaluation)
            evaluations.append(evaluation)
            report(title, evaluation)
    if evaluations:
        report_total(Evaluation.pooled(evaluations))
    return experiments.path


@contextmanager
def _folder(path: Path) -> Iterator[None]:
    """Make a folder; it is removed again where nothing has come into it."""
    made = not path.exists()
    make_folder(path)
    try:
        yield
    finally:
        if made:
            with suppress(OSError):  # it is not empty
                path.rmdir()


def file_name(name: str) -> str:
    """A data set's name as part of a file's name: no name in a file leads outside the folder."""
    return "".join(each if each.isprintable() and each not in "/\\" else "_" for each in name)[:100]


class _Experiments:
    """The sets of all experiments that there are, by run folder, and the file that holds them together."""

    def __init__(self, folders: list[Path], path: Path) -> None:
        self.folders = folders
        self.path = path
        self.sets: dict[Path, SyntheticSet] = {}
        self._writes = True

    @contextmanager
    def kept(self, ranks: Ranks, save_path: Path, stem: str) -> Iterator[None]:
        """Keep the files to this job, of whose ranks the first one writes them; see `noted`."""
        self._writes = ranks.first
        with ExitStack() as stack:
            if ranks.first:
                stack.enter_context(_folder(save_path))
                stack.enter_context(locked(save_path / f".{stem}.lock", f"{save_path / stem}…"))
            stack.enter_context(self.noted())
            yield

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Let an exception within the block say which experiments are complete."""
        try:
            yield
        except BaseException as error:
            if self.sets and not isinstance(error, FastDMError):
                complete = ", ".join(str(folder) for folder in self.folders if folder in self.sets)
                error.add_note(f"condensed sets are in {complete}")
            raise

    def check_own(self) -> None:
        """Raise FastDMError for a result file that is of none of the runs: the public code's has the same name."""
        if self.path.exists() and not any(folder.exists() for folder in self.folders):
            raise FastDMError(
                f"{self.path} is there already, without the run folders that go with it: overwrite it, or choose "
                "another folder (--overwrite, --save_path)"
            )

    def load(self, dataset: Dataset, runs: Mapping[Path, Settings]) -> None:
        """Read the sets of the run folders, as far as they were made by the settings that their runs have now."""
        for folder, settings in runs.items():
            with suppress(FastDMError):  # not there yet, or damaged: it will be written again
                found = SyntheticSet.load(folder / "synthetic.safetensors")
                if found.class_names == dataset.class_names and _key(found.settings) == settings.resume_key():
                    self.sets[folder] = found

    def write(self) -> None:
        """Write the result file, with what was measured of each set."""
        if not self._writes:
            return
        ready = {folder: self.sets[folder] for folder in self.folders if folder in self.sets}
        kept = [read_evaluation(folder, synthetic) for folder, synthetic in ready.items()]
        save_public([*ready.values()], self.path, Evaluation.pooled(filter(None, kept)).accuracies)


def _key(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """The `resume_key` of the settings that a set records; the first sets do not say that they were made unclamped."""
    names = {field.name for field in dataclasses.fields(Settings)}
    return Settings(**{"clamp": False, **{name: recorded[name] for name in names & recorded.keys()}}).resume_key()


def write_evaluation(
    folder: Path, synthetic: SyntheticSet, protocol: Protocol, evaluation: Evaluation, seconds: float
) -> None:
    """Keep what was measured in a run folder, and the seconds that it took."""
    content = {
        "set_crc32": synthetic.crc32(),
        "protocol": dataclasses.asdict(protocol),
        "seconds": round(seconds, 3),
        **evaluation.summary(),
    }
    lines = [f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in content.items()]
    with writing(folder / FILE) as temporary:
        temporary.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def read_evaluation(folder: Path, synthetic: SyntheticSet, protocol: Protocol | None = None) -> Evaluation | None:
    """What a run folder keeps of this very set, measured by this very protocol if one is given; None if nothing."""
    try:
        content = parse_json((folder / FILE).read_bytes())
        same = content["set_crc32"] == synthetic.crc32() and bool(content["accuracies"])
        if protocol is not None:
            same = same and content["protocol"] == json.loads(json.dumps(dataclasses.asdict(protocol)))
        return Evaluation.from_json(content) if same else None
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
    ):  # not there, or not a file of ours: it will be measured again
        return None
