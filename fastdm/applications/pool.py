"""`train_pool`: networks trained on a data set, with snapshots of their way, to match images in later."""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fastdm.augmentation import default_strategy
from fastdm.condensation.loop import fingerprint, normalised
from fastdm.data.pool import Dataset
from fastdm.data.sources import Source, open_dataset
from fastdm.errors import FastDMError, one_of, whole_number
from fastdm.evaluation.protocol import Protocol
from fastdm.evaluation.testing import accuracy
from fastdm.evaluation.together import Together
from fastdm.evaluation.training import LabelledImages, Momentum, Start, draw_weights, train_network
from fastdm.evaluation.trial import Job, train_all
from fastdm.networks.architectures import build_network, default_network
from fastdm.networks.model import Network
from fastdm.networks.trained import NetworkPool, flatten_parameters, load_parameters
from fastdm.system.checks import parse_json
from fastdm.system.device import Precision, default_device, fastest_precision, precision_context, undisturbed
from fastdm.system.files import crc32, locked, make_folder, user_path, writing
from fastdm.system.memory import within_memory
from fastdm.system.progress import Progress
from fastdm.system.ranks import shared

SEED_BIT = 1 << 61
"""Keeps the networks apart from those that an evaluation with the same seed trains."""

FEWEST_STATES = 13
_FORMAT = "fastdm-training-2"


@within_memory("take a smaller network or batch_train, fewer networks or states, or fewer threads")
@undisturbed()
def train_pool(
    data: Source,
    *,
    networks: int = 5,
    epochs: int = 60,
    states: int | None = None,
    network: str | None = None,
    lr_net: float = 0.01,
    batch_train: int = 64,
    cutmix: bool = True,
    seed: int = 0,
    save_path: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    data_path: str | Path = "data",
    image_size: int | tuple[int, int] | None = None,
    device: str | torch.device | None = None,
    precision: Precision | None = None,
    progress: bool = False,
) -> NetworkPool:
    """Train networks on a data set and keep snapshots of each, from its random start to its end.

    `fastdm.condense(..., networks="trained", pool=...)` matches images in them. They are trained as in the evaluation
    protocol "idc" (see `fastdm.evaluate`), which is how IDC, DANCE and TGDD train theirs, but without the scale and
    shift of norms, and without the biases that norms cancel: so matching in them costs no more than in random networks.

    data, data_path, image_size: as in `open_dataset`. networks: how many are trained, each from weights of its own, for
    `epochs` epochs in batches of `batch_train`, from the learning rate `lr_net`. states: snapshots of each, spread
    evenly over its updates, start and end included; by default one per epoch and the start, and at least 13 if it has
    as many. network:
    architecture, by default the ConvNet that suits the image size. cutmix: False trains without. precision: of the
    forward passes, by default the fastest of equal accuracy.
    save_path: the file of the pool, .safetensors. Until it is complete, a file next to it keeps each network with its
    snapshots, and resume continues from there: the result is that of an uninterrupted training. overwrite: start over.
    No other process can train for this file meanwhile.
    progress: show a bar on a terminal, JSON lines elsewhere.

    Ranks share the networks, and all get the whole pool: see docs/ranks.md.

    Everything follows from `seed` and the number of the network; on a CPU the same call gives the same pool, bit for
    bit. Raises FastDMError, before the first update, for whatever cannot be used, and for a training that diverges.

    >>> import fastdm
    >>> pool = fastdm.train_pool("digits", networks=2, epochs=1, states=3, network="ConvNetD1", device="cpu")
    >>> pool.weights.shape[:2]
    torch.Size([2, 3])
    """
    dataset = open_dataset(data, data_path=data_path, image_size=image_size)
    device = default_device(device)
    networks, seed = whole_number("networks", networks, 1), whole_number("seed", seed, 0)
    one_of("cutmix", cutmix, (True, False))
    protocol = Protocol(
        [default_network(dataset.image_shape) if network is None else network],
        default_strategy(dataset.name),
        networks,
        epochs,
        lr_net,
        batch_train,
        seed ^ SEED_BIT,
        precision or fastest_precision(device),
        name="idc",
        cutmix=cutmix,
    )
    protocol.check_batches(len(dataset.train), dataset)
    steps = protocol.steps(len(dataset.train))
    if states is None:
        states = min(max(protocol.epochs + 1, FEWEST_STATES), steps + 1)
    elif whole_number("states", states, 2) > steps + 1:
        raise FastDMError(f"states is {states}, but trainings of {steps} updates have {steps + 1}; use at most as many")
    settings = _settings(protocol, states, seed)
    files = _Files(
        None if save_path is None else user_path(save_path),
        {**settings, **fingerprint(dataset), **normalised(dataset)},
        older=normalised(dataset),
    )
    kept = [steps * state // (states - 1) for state in range(states)]
    with shared() as ranks, files.locked() if ranks.first else nullcontext():
        complete = files.begin(resume, overwrite) if ranks.first else None
        if ranks.exchange(complete is not None)[0]:
            return complete or files.complete()
        numbers = [share.tolist() for share in torch.arange(networks).tensor_split(ranks.size)]
        weights, accuracies = _train(
            dataset, protocol, numbers[ranks.rank], kept, files, device, progress=progress and ranks.first
        )
        pool = NetworkPool(
            ranks.assemble(weights, [len(share) for share in numbers]),
            next(iter(protocol.by_name())),
            dataset.image_shape,
            dataset.num_classes,
            dataset.name,
            tuple(chain.from_iterable(ranks.exchange(accuracies))),
            files.settings,
        )
        if ranks.first:
            files.finish(pool)
        ranks.exchange(None)  # now it is there
    return pool


def _settings(protocol: Protocol, states: int, seed: int) -> dict[str, Any]:
    """What decides the pool besides the data, as its file keeps it."""
    names = ("epochs", "lr_net", "cutmix", "strategy", "precision")
    return {
        "networks": protocol.num_eval,
        "network": next(iter(protocol.by_name())),
        "states": states,
        "batch_train": protocol.batch,
        "seed": seed,
        **{name: getattr(protocol, name) for name in names},
    }


def _train(
    dataset: Dataset,
    protocol: Protocol,
    numbers: Sequence[int],
    kept: list[int],
    files: "_Files",
    device: torch.device,
    *,
    progress: bool,
) -> tuple[Tensor, list[float]]:
    """The snapshots of networks after the updates `kept`, [networks, states, parameters], and their test accuracies if
    there are test images."""
    examples = LabelledImages.of(dataset.train, dataset.mean, dataset.std, device)
    tests = LabelledImages.of(dataset.test, dataset.mean, dataset.std, device) if dataset.test else None
    jobs = [(next(iter(protocol.by_name())), number) for number in numbers]
    bar = Progress("pool", len(jobs) * kept[-1]) if progress else None
    with bar or nullcontext(), precision_context(protocol.precision, device) as dtype:
        trainings = _Trainings(dataset.image_shape, dataset.num_classes, protocol, examples, tests, kept, files, dtype)
        found = train_all(trainings, jobs, bar, lambda done, at_once: "")
    weights = torch.empty(len(jobs), len(kept), trainings.parameters, dtype=torch.float32)
    for own, (rows, _) in zip(weights, found, strict=True):
        own.copy_(rows)
    return weights, [accuracy for _, accuracy in found if accuracy is not None]


_Trained = tuple[Tensor, float | None]
"""The snapshots of a network, float32 [states, parameters], and its accuracy on the test images if there are any."""


@dataclass(frozen=True)
class _Trainings:
    """The trainings of a pool, one by one or together."""

    image_shape: tuple[int, int, int]
    num_classes: int
    protocol: Protocol
    examples: LabelledImages
    tests: LabelledImages | None
    kept: list[int]
    files: "_Files"
    dtype: torch.dtype

    @property
    def device(self) -> torch.device:
        return self.examples.images.device

    @property
    def parameters(self) -> int:
        """Of each network."""
        network = self.build((next(iter(self.protocol.by_name())), 0))
        return sum(parameter.numel() for parameter in network.parameters())

    def build(self, job: Job) -> Network:
        """The network of a job, whose weights are not drawn yet."""
        channels, height, width = self.image_shape
        return build_network(
            job[0],
            channels=channels,
            num_classes=self.num_classes,
            image_size=(height, width),
            affine=False,
            drawn=False,
            device=self.device,
        )

    def __call__(self, job: Job, after_step: Callable[[], None]) -> _Trained:
        network = self.build(job)
        training = _Training(network, self.kept, self.files, job[1])

        def after(done: int, momentum: Momentum) -> None:
            training.after(done, momentum)
            after_step()

        start = training.resumed()
        if start is None:
            draw_weights(network, self.examples, self.protocol, job[1])
            training.after(0, list)
        for _ in range(start.done if start else 0):
            after_step()
        train_network(network, self.examples, self.protocol, job[1], self.dtype, after, start)
        return self._result(training)

    def together(self, jobs: Sequence[Job], after_step: Callable[[], None]) -> list[_Trained]:
        """Train networks by one graph; RuntimeError where there can be none, and for trainings to be resumed."""
        trainings = [_Training(self.build(job), self.kept, self.files, job[1]) for job in jobs]
        if any(training.resumed() for training in trainings):
            raise RuntimeError("what was interrupted is resumed")
        numbered = [(number, training.network) for (_, number), training in zip(jobs, trainings, strict=True)]
        group = Together(numbered, self.examples, self.protocol, self.dtype)

        def after(done: int) -> None:
            for training, momentum in zip(trainings, group.momentum, strict=True):
                training.after(done, partial(list, momentum))
            if done:
                for _ in jobs:
                    after_step()

        after(0)
        group.run(after)
        return [self._result(training) for training in trainings]

    def _result(self, training: "_Training") -> _Trained:
        found = accuracy(training.network, self.tests, self.dtype) if self.tests else None
        return training.rows, found


class _Training:
    """The snapshots of one network as they come; the training is saved with each."""

    def __init__(self, network: Network, kept: list[int], files: "_Files", number: int) -> None:
        self.network = network
        self._states = {done: state for state, done in enumerate(kept)}
        self._files = files
        self._number = number
        parameters = sum(parameter.numel() for parameter in network.parameters())
        self.rows = torch.zeros(len(kept), parameters, dtype=torch.float32)

    def resumed(self) -> Start | None:
        """Where the saved training was, with the network as it was there; None if there is none."""
        saved = self._files.load(self._number)
        if saved is None:
            return None
        done, rows, momentum = saved
        self.rows[: len(rows)] = rows
        load_parameters(self.network, rows[-1])
        sizes = [parameter.numel() for parameter in self.network.parameters()]
        shapes = [parameter.shape for parameter in self.network.parameters()]
        return Start(done, [part.view(shape) for part, shape in zip(momentum.split(sizes), shapes, strict=True)])

    def after(self, done: int, momentum: Momentum) -> None:
        """The network has had `done` updates."""
        if (state := self._states.get(done)) is None:
            return
        self.rows[state] = flatten_parameters(self.network)
        if not self.rows[state].isfinite().all():
            raise FastDMError(
                f"network {self._number} has weights that are not finite after {done} updates: a smaller lr_net keeps "
                "them finite"
            )
        if done:
            flat = torch.cat([part.contiguous().flatten().cpu() for part in momentum()])
            self._files.save(self._number, done, self.rows[: state + 1], flat)


class _Files:
    """The file of the pool, and until it is complete one for each network next to it; with `path` None none at all.

    settings: what a training must have been started with to be resumed; older: those that the files of earlier versions
    do not state.
    """

    def __init__(self, path: Path | None, settings: dict[str, Any], older: Mapping[str, Any] | None = None) -> None:
        if path is not None and path.suffix != ".safetensors":
            raise FastDMError(f"{path} must end in .safetensors")
        if path is not None:
            make_folder(path.parent)
        self.path = path
        self.settings = json.loads(json.dumps(settings))
        self._older = dict(older or {})

    def locked(self) -> AbstractContextManager[None]:
        """Keep other processes from the files within the block."""
        if self.path is None:
            return nullcontext()
        return locked(self.path.with_name(f".{self.path.name}.lock"), str(self.path))

    def begin(self, resume: bool, overwrite: bool) -> NetworkPool | None:
        """The pool, if it is complete and to be resumed; FastDMError where files would be lost."""
        if resume and overwrite:
            raise FastDMError("resume continues a training, and overwrite starts over: ask for one of them")
        if self.path is None:
            return None
        if overwrite:
            self._remove_parts()
        elif not resume and self.path.exists():
            raise FastDMError(f"{self.path} already exists: resume it, overwrite it, or choose another file")
        elif self.path.exists() and not self._is_overwritten():
            return self.complete()
        elif not resume and self._parts():
            raise FastDMError(f"a training for {self.path} was interrupted: resume it, overwrite it, or choose another")
        return None

    def _is_overwritten(self) -> bool:
        """Whether a training that will replace the pool was interrupted: the pool is there until then."""
        assert self.path is not None
        return bool(self._parts()) and bool(self._changes(NetworkPool.load(self.path).settings))

    def complete(self) -> NetworkPool:
        """The pool, which is there."""
        assert self.path is not None
        pool = NetworkPool.load(self.path)
        self._check(self.path, pool.settings)
        return pool

    def finish(self, pool: NetworkPool) -> None:
        """Write the pool in place of its parts."""
        if self.path is not None:
            pool.save(self.path)
            self._remove_parts()

    def save(self, number: int, done: int, rows: Tensor, momentum: Tensor) -> None:
        """Keep network `number` after `done` updates: its snapshots until now, and its momentum."""
        if self.path is None:
            return
        tensors = {"rows": rows.contiguous(), "momentum": momentum}
        about = {"format": _FORMAT, "done": str(done), "settings": json.dumps(self.settings)}
        with writing(self._part(number)) as temporary:
            save_file(tensors, temporary, {**about, "crc32": _checksum(rows, momentum, about)})

    def load(self, number: int) -> tuple[int, Tensor, Tensor] | None:
        """What `save` kept of a network last."""
        if self.path is None or not (part := self._part(number)).exists():
            return None
        try:
            with safe_open(part, "pt") as file:
                metadata = file.metadata() or {}
                rows, momentum = file.get_tensor("rows"), file.get_tensor("momentum")
            if metadata["format"] != _FORMAT or metadata["crc32"] != _checksum(rows, momentum, metadata):
                raise ValueError("its checksum does not match")
            done, settings = int(metadata["done"]), parse_json(metadata["settings"])
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise FastDMError(f"the training in {part} is damaged ({error}); remove it and resume") from error
        self._check(part, settings)
        return done, rows, momentum

    def _changes(self, settings: Mapping[str, Any]) -> list[str]:
        """What differs from the settings of a file."""
        return [
            f"{name} was {was!r} and is {now!r}"
            for name, now in self.settings.items()
            if (was := settings.get(name, self._older.get(name))) != now
        ]

    def _check(self, path: Path, settings: Mapping[str, Any]) -> None:
        if changes := self._changes(settings):
            raise FastDMError(
                f"{path} was begun with different settings ({'; '.join(changes)}); use the same, or overwrite"
            )

    def _part(self, number: int) -> Path:
        assert self.path is not None
        return self.path.with_name(f"{self.path.stem}-network-{number}.safetensors")

    def _parts(self) -> list[Path]:
        """The files of single networks that are there, also those of a training of more networks."""
        assert self.path is not None
        begin = f"{self.path.stem}-network-"
        found = (each for each in self.path.parent.iterdir() if each.name.startswith(begin))
        return [each for each in found if each.stem.removeprefix(begin).isdecimal() and each.suffix == ".safetensors"]

    def _remove_parts(self) -> None:
        for part in self._parts():
            part.unlink(missing_ok=True)


def _checksum(rows: Tensor, momentum: Tensor, about: Mapping[str, str]) -> str:
    """CRC-32 of what a part holds: its tensors, and what it says of them."""
    return str(
        crc32(rows.contiguous(), momentum, text=json.dumps([list(rows.shape), about["done"], about["settings"]]))
    )
