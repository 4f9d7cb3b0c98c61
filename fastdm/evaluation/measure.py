"""`evaluate`: networks are trained on a set, side by side, and tested on real images."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import torch

from fastdm.augmentation import default_strategy
from fastdm.data.normalisation import per_channel
from fastdm.data.pool import Dataset, Pool
from fastdm.data.sources import Source, open_dataset
from fastdm.errors import FastDMError, one_of
from fastdm.evaluation.ensemble import position
from fastdm.evaluation.outcome import Evaluation
from fastdm.evaluation.protocol import Protocol
from fastdm.evaluation.soft_labels import relabel
from fastdm.evaluation.testing import Answers
from fastdm.evaluation.training import LabelledImages
from fastdm.evaluation.trial import Trial, train_all
from fastdm.networks.architectures import default_network, is_network
from fastdm.networks.own import Builder
from fastdm.networks.trained import NetworkPool, opened_pool
from fastdm.synthetic.initial import random_selection
from fastdm.synthetic.synthetic_set import SyntheticSet, check_compatible
from fastdm.system.checks import all_finite
from fastdm.system.device import Precision, default_device, precision_context, undisturbed
from fastdm.system.memory import within_memory
from fastdm.system.notes import Tally
from fastdm.system.progress import Progress
from fastdm.system.ranks import shared

_SMALLER = "take a smaller network or batch_train, or fewer threads, each of which trains a network of its own"


def recorded_settings(train: SyntheticSet | Pool, dataset: Dataset) -> tuple[str, str]:
    """Network and strategy that a set was condensed with; where it does not say, the defaults for the data set.

    The strategy of a set in whose condensation all families acted together (mode "M") is not one to train with.
    """
    recorded = train.settings if isinstance(train, SyntheticSet) else {}
    network = recorded.get("network")
    return default_network(dataset.image_shape) if network is None else network, training_strategy(recorded, dataset)


def training_strategy(settings: Mapping[str, Any], dataset: Dataset) -> str:
    """The strategy to train with on a set that was condensed with `settings`, by default the data set's."""
    strategy = None if settings.get("aug_mode") == "M" else settings.get("strategy")
    return default_strategy(dataset.name) if strategy is None else strategy


def check_recorded(network: str) -> None:
    """Raise FastDMError for the name of a network of the user's own, which only a function builds."""
    if not is_network(network):
        raise FastDMError(
            f"the set was condensed in {network}, which is not a network that fastdm knows: name another (--model), or "
            "from Python give the function that builds it (networks=[…])"
        )


@within_memory(_SMALLER)
@undisturbed()
def evaluate(
    train: SyntheticSet | Pool,
    dataset: Source,
    *,
    networks: Sequence[str | Builder] | None = None,
    num_eval: int = 20,
    epochs: int = 1000,
    lr_net: float = 0.01,
    batch_train: int | None = None,
    strategy: str | None = None,
    protocol: Literal["dm", "idc"] = "dm",
    checks: int = 1,
    labels: Literal["hard", "soft"] = "hard",
    pool: NetworkPool | str | Path | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    precision: Precision | None = None,
    data_path: str | Path = "data",
    image_size: int | tuple[int, int] | None = None,
    progress: bool = False,
) -> Evaluation:
    """Train `num_eval` fresh networks of each architecture on `train`; test them on the test part of `dataset`.

    The public code's protocol, "dm": SGD (momentum 0.9, weight decay 5e-4), epochs + 1 epochs in batches of 256, the
    learning rate times 0.1 and the momentum reset after epoch epochs // 2 + 1 (counted from 0); every batch is
    augmented by one family of `strategy`, with parameters of its own for every image. The other protocol is "idc", in
    which IDC and its relatives report: `fastdm.evaluation.protocol.Protocol` says how they differ. Accuracies under the
    two cannot be compared. Test images are not augmented.

    train: a condensed set, `random_selection(…)` or `whole_set(…)`; a set with a partition is decoded. dataset:
    anything that `open_dataset` takes, looked up under data_path and, if it is image files, brought to image_size. Its
    test images are normalised as the training images are.
    networks: architectures, each by its name (`fastdm list networks`) or as a function without arguments that builds
    any `torch.nn.Module` from images [N, C, H, W] to logits [N, classes], such as
    `functools.partial(torchvision.models.resnet18, num_classes=10)`; its weights are those that it draws itself, from
    PyTorch's global generator with a seed of their own, and results are under the function's name. strategy: families
    of the augmentation joined by underscores, or "none". Both are by default those that the set was condensed with;
    where it does not say, ConvNet of the depth that suits the image size, and the data set's strategy (digits are not
    flipped). num_eval: networks of each architecture. lr_net: their first learning rate.
    checks: how many times the accuracy is measured during a training; the last, at its end, is the result, the highest
    is kept next to it as `Evaluation.best`. labels: "soft" trains for the probabilities that the set has, or else that
    the networks of `pool` (or of its file) give its images. Since a teacher's labels help any images, as many random
    real images are then evaluated with labels from the same pool: `Evaluation.random`. batch_train: None takes the
    protocol's.
    device: default: the GPU if there is one. precision: "fp32", "tf32" (the default on a GPU) or "bf16";
    with the last, a CPU without AMX, which is faster in float32, computes the blocks of networks in that.
    progress: show a bar on a terminal, JSON lines elsewhere.

    Weights, batches and augmentation follow from `seed` and the number of the network alone: on a CPU, the same call
    gives the same accuracies. (Dropout in a module of your own draws from PyTorch's global generator, which networks
    that are trained side by side share.)

    Returns accuracies, top-1 and top-5, and the confusion matrix: see `fastdm.evaluation.outcome.Evaluation`. Raises
    FastDMError, before the first training, for whatever does not fit together.

    >>> import fastdm
    >>> images = fastdm.random_selection("digits", ipc=1)
    >>> result = fastdm.evaluate(images, "digits", num_eval=1, epochs=1, device="cpu")
    >>> list(result.accuracies)
    ['ConvNet']
    """
    dataset = open_dataset(dataset, data_path=data_path, image_size=image_size)
    device = default_device(device)
    _check_train(train)
    network, recorded_strategy = recorded_settings(train, dataset)
    if networks is None:
        check_recorded(network)
    how = Protocol(
        (network,) if networks is None else networks,
        recorded_strategy if strategy is None else strategy,
        num_eval,
        epochs,
        lr_net,
        batch_train,
        seed,
        precision,
        name=protocol,
        checks=checks,
    )
    networks_of_pool = opened_pool(pool)
    check_labels(labels, networks_of_pool)
    if labels == "hard":
        return measure(train, dataset, how, device, progress=progress)
    return measure_soft(train, dataset, how, device, networks_of_pool, progress=progress)


def check_labels(labels: str, pool: NetworkPool | None) -> None:
    """Raise FastDMError for labels that are not known, and for a pool that nothing would be asked of."""
    one_of("labels", labels, ("hard", "soft"))
    if labels == "hard" and pool is not None:
        raise FastDMError("a pool of networks is given, but labels is 'hard'; use labels='soft', or leave the pool out")


def measure_soft(
    train: SyntheticSet | Pool,
    dataset: Dataset,
    protocol: Protocol,
    device: torch.device,
    pool: NetworkPool | None,
    *,
    progress: bool,
) -> Evaluation:
    """Measure the accuracy of a set with soft labels, and of as many random real images that the pool labels."""
    if not isinstance(train, SyntheticSet):
        raise FastDMError("labels is 'soft', which is for condensed sets and random selections; use 'hard'")
    if pool is None:
        raise FastDMError(
            "labels is 'soft', which takes them from a pool of trained networks: train one (fastdm pool), and give it"
        )
    if pool.dataset != dataset.name:
        tally = Tally()
        tally.say(f"the networks of the pool were trained on {pool.dataset}, not on {dataset.name}")
        tally.report("soft labels")
    labelled = train if train.soft_labels is not None else _relabelled(train, dataset, pool, device)
    random = relabel(random_selection(dataset, train.ipc, protocol.seed), pool, device)
    of_set, of_random = (
        measure(each, dataset, protocol, device, soft=True, progress=progress) for each in (labelled, random)
    )
    return replace(of_set, random=of_random)


def _relabelled(train: SyntheticSet, dataset: Dataset, pool: NetworkPool, device: torch.device) -> SyntheticSet:
    """The set with labels by the pool, whose networks know images as the data set normalises them."""
    if (train.mean, train.std) == (dataset.mean, dataset.std):
        return relabel(train, pool, device)
    check_compatible(f"the set of {train.dataset}", train.num_classes, train.images.shape[1:], dataset)
    mean, std, new_mean, new_std = map(per_channel, (train.mean, train.std, dataset.mean, dataset.std))
    images = ((train.images.detach().cpu() * std + mean) - new_mean) / new_std
    seen = replace(train, images=images, mean=dataset.mean, std=dataset.std)
    return replace(train, soft_labels=relabel(seen, pool, device).soft_labels)


@within_memory(_SMALLER)
@undisturbed()
def measure(
    train: SyntheticSet | Pool,
    dataset: Dataset,
    protocol: Protocol,
    device: torch.device,
    *,
    soft: bool = False,
    progress: bool = False,
) -> Evaluation:
    """`evaluate` by a protocol; soft: for the soft labels that the set has."""
    protocol.check(dataset)
    _check_fit(train, dataset)
    assert dataset.test is not None
    mean, std = (train.mean, train.std) if isinstance(train, SyntheticSet) else (dataset.mean, dataset.std)
    examples = LabelledImages.of(train, mean, std, device, soft=soft)
    protocol.check_batches(len(examples), dataset)
    tests = LabelledImages.of(dataset.test, mean, std, device)
    names = [*protocol.by_name()]
    jobs = [(name, number) for name in names for number in range(protocol.num_eval)]
    steps = protocol.steps(len(examples))
    precision = protocol.precision or ("tf32" if device.type == "cuda" else "fp32")

    with shared() as ranks, precision_context(precision, device) as dtype:
        own = jobs[ranks.rank :: ranks.size]
        bar = Progress("evaluate", len(own) * steps) if progress and ranks.first else None

        def where(done: int, at_once: int) -> str:
            return position(done, len(own), at_once, steps, protocol.all_epochs)

        with bar or nullcontext():
            tests_of = train_all(Trial(dataset, protocol, examples, tests, device, dtype), own, bar, where)
        found = [_evaluation(name, each, protocol.checks > 1) for (name, _), each in zip(own, tests_of, strict=True)]
        everywhere = ranks.exchange([asdict(each) for each in found])
    return Evaluation.pooled(Evaluation(**everywhere[job % ranks.size][job // ranks.size]) for job in range(len(jobs)))


def _evaluation(name: str, tests: Sequence[Answers], is_checked: bool) -> Evaluation:
    """One network's; is_checked: whether the best of its tests counts too."""
    last = tests[-1]
    return Evaluation(
        {name: [last.accuracy]},
        {name: [max(each.accuracy for each in tests)]} if is_checked else {},
        top5={name: [last.top5]},
        confusion={name: last.confusion.tolist()},
    )


def _check_train(train: object) -> None:
    if not isinstance(train, SyntheticSet | Pool):
        raise FastDMError(
            f"what is trained on is a {type(train).__name__}; it must be a SyntheticSet, or what whole_set(…) gives"
        )


def _check_fit(train: SyntheticSet | Pool, dataset: Dataset) -> None:
    what = f"the set of {train.dataset}" if isinstance(train, SyntheticSet) else "what is trained on"
    check_compatible(what, train.num_classes, train.images.shape[1:], dataset)
    if isinstance(train, SyntheticSet):
        _check_order(what, train.class_names, dataset)
    if train.images.is_floating_point() and not all_finite(train.images):
        raise FastDMError("some pixels of the training images are not finite numbers")


def _check_order(what: str, class_names: Sequence[str], dataset: Dataset) -> None:
    """Raise FastDMError for the data set's classes in another order: their numbers would mean others.

    A set that was loaded without names has numbers in their place.
    """
    theirs = dataset.class_names
    if [*class_names] == [*map(str, range(len(theirs)))] or sorted(class_names) != sorted(theirs):
        return
    for number, (own, other) in enumerate(zip(class_names, theirs, strict=True)):
        if own != other:
            raise FastDMError(
                f"{what} has the classes of data set {dataset.name} in another order: class {number} is {own!r} in the "
                f"set, but {other!r} in the data set; give the data set its classes in the order of the set"
            )
