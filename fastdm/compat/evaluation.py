"""`evaluate_synset`: the public code's training of a network on a condensed set, with the caller's own network."""

import time
import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

from fastdm.compat.diff_augment import DiffAugment
from fastdm.compat.parts import images_at_once, keep_freed_memory
from fastdm.errors import FastDMError, whole_number
from fastdm.networks.fusing import fused_blocks
from fastdm.system.device import default_device, free_memory

MOMENTUM = 0.9
WEIGHT_DECAY = 5e-4
CACHE_SHARE = 4
"""A test set is kept on the device if this many of its size would fit there."""


_TestSet = list[tuple[Tensor, Tensor]]
"""Images and labels in the batches that the loader gave."""

_kept: "weakref.WeakKeyDictionary[Any, _TestSet]" = weakref.WeakKeyDictionary()


@torch.inference_mode(False)
@torch.enable_grad()
def evaluate_synset(
    it_eval: int, net: nn.Module, images_train: Tensor, labels_train: Tensor, testloader: Iterable[Any], args: Any
) -> tuple[nn.Module, float, float]:
    """Train `net` on a condensed set and test it: (net, training accuracy of the last epoch, test accuracy in [0, 1]).

    The public function of this name (DatasetCondensation, utils.py): SGD with momentum 0.9 and weight decay 5e-4,
    args.epoch_eval_train + 1 epochs in batches of args.batch_train, a tenth of args.lr_net after the middle, every
    batch augmented. It draws what the public function draws from the global generators, so that both train alike to
    rounding.

    it_eval: a number for the line that is printed. net: any module that gives logits [N, classes]. images_train:
    normalised [N, C, H, W]; labels_train: integers [N]. testloader: gives (images, labels); it is read when it is first
    used, and its images are kept on the device for the networks after, if they fit and are not shuffled: make another
    loader for other images. On a CPU they go through the network in parts that suit its cache, and blocks of the public
    ConvNet (3×3 convolution, GroupNorm or InstanceNorm of every channel, ReLU, 2×2 average pooling, one after the other
    in a Sequential) are computed as one op each. args: device, lr_net, epoch_eval_train, batch_train, and for the
    augmentation dsa, dsa_strategy, dsa_param.

    Raises FastDMError for `args` without one of these, for images and labels that do not fit together, and for the
    augmentation of plain DC (args.dc_aug_param).

    >>> import argparse, fastdm.compat, torch
    >>> from torch.utils.data import DataLoader, TensorDataset
    >>> args = argparse.Namespace(device="cpu", lr_net=0.01, epoch_eval_train=2, batch_train=4, dsa=False)
    >>> images, labels = torch.randn(4, 1, 8, 8), torch.tensor([0, 1, 0, 1])
    >>> tests = DataLoader(TensorDataset(images, labels), batch_size=4)
    >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 2))
    >>> net, _, accuracy = fastdm.compat.evaluate_synset(0, net, images, labels, tests, args)  # doctest: +ELLIPSIS
    Evaluate_00: epoch = 0002 train time = ...
    """
    device = default_device(_of(args, "device"))
    lr = float(_of(args, "lr_net"))
    epochs = whole_number("args.epoch_eval_train", _of(args, "epoch_eval_train"), 0)
    batch_train = whole_number("args.batch_train", _of(args, "batch_train"), 1)
    _check(net, images_train, labels_train)
    strategy, param = _augmentation(args)
    net = net.to(device)
    keep_freed_memory(device)
    images, labels = images_train.detach().to(device), labels_train.to(device).long()
    order, highest = _Order(len(images), batch_train), int(labels.max())

    began = time.monotonic()
    with fused_blocks(net):
        optimizer = _sgd(net, lr)
        net.train()
        loss_train = right = torch.zeros((), device=device)
        for epoch in range(epochs + 1):
            loss_train, right = torch.zeros((), device=device), torch.zeros((), device=device)
            for index in order.epoch():
                rows = index.to(device)
                batch, truth = images[rows].float(), labels[rows]
                if strategy:
                    batch = DiffAugment(batch, strategy, param=param)
                logits = net(batch)
                if epoch == 0 and logits.shape[1] <= highest:
                    raise FastDMError(f"labels_train has the label {highest}, but net gives {logits.shape[1]} logits")
                loss = functional.cross_entropy(logits, truth)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                loss_train += loss.detach() * len(rows)
                right += (logits.detach().argmax(1) == truth).sum()
            if epoch == epochs // 2 + 1:
                optimizer = _sgd(net, 0.1 * lr)
        acc_train = right.item() / len(images)  # waits for the device
        seconds = time.monotonic() - began
        acc_test = _accuracy(net, testloader, device)
    print(
        f"Evaluate_{it_eval:02d}: epoch = {epochs:04d} train time = {seconds:.0f} s train loss = "
        f"{loss_train.item() / len(images):.6f} train acc = {acc_train:.4f}, test acc = {acc_test:.4f}"
    )
    return net, acc_train, acc_test


def _check(net: nn.Module, images: Tensor, labels: Tensor) -> None:
    if not isinstance(net, nn.Module):
        raise FastDMError(f"net is a {type(net).__name__}; it must be a torch.nn.Module")
    for name, given in (("images_train", images), ("labels_train", labels)):
        if not isinstance(given, Tensor):
            raise FastDMError(f"{name} is a {type(given).__name__}; it must be a tensor")
    if len(images) == 0 or labels.shape != images.shape[:1]:
        raise FastDMError(
            f"images_train is {list(images.shape)} and labels_train {list(labels.shape)}; they must be [N, C, H, W] "
            "and [N], with N above 0"
        )
    if not images.is_floating_point():
        raise FastDMError(f"images_train is {images.dtype}; it must be normalised images, a tensor of floats")
    if labels.dtype == torch.bool or bool((labels != labels.long()).any()) or int(labels.min()) < 0:
        raise FastDMError("labels_train must be whole numbers from 0 on, the classes of images_train")


class _Order:
    """The order of the images in every epoch, with the public code's draws: its loader reads numbers here, so that
    reading one at a time costs nothing."""

    def __init__(self, images: int, batch: int) -> None:
        numbers: Any = range(images)
        self._loader: DataLoader[Any] = DataLoader(numbers, batch, shuffle=True, collate_fn=torch.tensor)

    def epoch(self) -> list[Tensor]:
        with torch.device("cpu"):  # its generator is the CPU's, whatever the default device is
            return list(self._loader)


def _of(args: Any, name: str) -> Any:
    try:
        return getattr(args, name)
    except AttributeError as error:
        raise FastDMError(f"args has no {name}, which evaluate_synset needs") from error


def _augmentation(args: Any) -> tuple[str, Any]:
    """Strategy and parameters of DSA, "" for no augmentation."""
    if _of(args, "dsa"):
        strategy = _of(args, "dsa_strategy")
        return ("" if strategy in (None, "none", "None") else strategy), _of(args, "dsa_param")
    plain = getattr(args, "dc_aug_param", None)
    if plain is not None and plain.get("strategy", "none") != "none":
        raise FastDMError("args.dsa is off, and args.dc_aug_param asks for the augmentation of plain DC: use args.dsa")
    return "", None


def _sgd(net: nn.Module, lr: float) -> torch.optim.SGD:
    return torch.optim.SGD(net.parameters(), lr, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)


@torch.no_grad()
def _accuracy(net: nn.Module, testloader: Iterable[Any], device: torch.device) -> float:
    net.eval()
    right, total = torch.zeros((), dtype=torch.int64, device=device), 0
    for images, labels in _test_batches(testloader, device):
        size = images_at_once(net, images) or len(images)
        for part, truth in zip(images.split(size), labels.split(size), strict=True):
            right += (net(part).argmax(1) == truth).sum()
        total += len(labels)
    if total == 0:
        raise FastDMError("testloader gives no images to test on")
    return right.item() / total


def _test_batches(testloader: Iterable[Any], device: torch.device) -> Iterable[tuple[Tensor, Tensor]]:
    """The test images in the loader's batches, read from it only the first time."""
    # Of a shuffled set, every pass draws an order: only reading it anew draws what the public function draws.
    loader = testloader if isinstance(testloader, DataLoader) and _is_in_order(testloader) else None
    kept = None if loader is None else _kept.get(loader)
    if loader is not None and kept is not None and kept[0][0].device == device:
        # What a pass over the loader draws, so that the networks after train as they would have.
        torch.empty((), dtype=torch.int64, device="cpu").random_(generator=loader.generator)
        for images, labels in kept:
            yield images.clone(), labels  # which a network may change in place
        return
    batches: _TestSet = []
    size, fits = 0, loader is not None
    for datum in testloader:
        images, labels = datum[0].float().to(device), datum[1].long().to(device)
        size += images.nbytes
        fits = fits and size * CACHE_SHARE <= free_memory(device)
        if fits:
            batches.append((images.clone(), labels))
        else:
            batches.clear()
        yield images, labels
    if loader is not None and fits and batches:
        _kept[loader] = batches


def _is_in_order(loader: "DataLoader[Any]") -> bool:
    """Whether it reads the images in their order, which no sampler of the caller's draws."""
    batches = loader.batch_sampler
    if batches is None:
        return type(loader.sampler) is SequentialSampler
    return type(batches) is BatchSampler and type(batches.sampler) is SequentialSampler
