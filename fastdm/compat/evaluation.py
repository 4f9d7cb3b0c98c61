"""`evaluate_synset`: the public code's training of a network on a condensed set, with the caller's own network."""

import time
import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, SequentialSampler

from fastdm.compat.diff_augment import DiffAugment
from fastdm.compat.parts import images_at_once, keep_freed_memory
from fastdm.errors import FastDMError
from fastdm.system.device import free_memory

MOMENTUM = 0.9
WEIGHT_DECAY = 5e-4
CACHE_SHARE = 4
"""A test set is kept on the device if this many of its size would fit there."""


_TestSet = list[tuple[Tensor, Tensor]]
"""Images and labels in the batches that the loader gave."""

_kept: "weakref.WeakKeyDictionary[Any, _TestSet]" = weakref.WeakKeyDictionary()


def evaluate_synset(
    it_eval: int, net: nn.Module, images_train: Tensor, labels_train: Tensor, testloader: Iterable[Any], args: Any
) -> tuple[nn.Module, float, float]:
    """Train `net` on a condensed set and test it: (net, training accuracy of the last epoch, test accuracy).

    The public function of this name (DatasetCondensation, utils.py): SGD with momentum 0.9 and weight decay 5e-4,
    args.epoch_eval_train + 1 epochs in batches of args.batch_train, a tenth of args.lr_net after the middle, every
    batch augmented. It draws what the public function draws from the global generators, so that both train alike to
    rounding.

    it_eval: a number for the line that is printed. net: any module that gives logits [N, classes]. images_train:
    normalised [N, C, H, W]; labels_train: integers [N]. testloader: gives (images, labels); it is read when it is first
    used, and its images are kept on the device for the networks after, if they fit and are not shuffled: make another
    loader for other images. On a CPU they go through the network in parts that suit its cache. args: device, lr_net,
    epoch_eval_train, batch_train, and for the augmentation dsa, dsa_strategy, dsa_param.

    Raises FastDMError for `args` without one of these, and for the augmentation of plain DC (args.dc_aug_param).
    """
    device = torch.empty(0, device=_of(args, "device")).device
    lr, epochs, batch_train = (
        float(_of(args, "lr_net")),
        int(_of(args, "epoch_eval_train")),
        int(_of(args, "batch_train")),
    )
    strategy, param = _augmentation(args)
    net = net.to(device)
    keep_freed_memory(device)
    images, labels = images_train.detach().to(device), labels_train.to(device).long()
    # The public code's order and draws: this loader's items are numbers, so that reading one at a time costs nothing.
    numbers: Any = range(len(images))
    order: DataLoader[Any] = DataLoader(numbers, batch_train, shuffle=True, collate_fn=torch.tensor)

    began = time.monotonic()
    optimizer = _sgd(net, lr)
    net.train()
    loss_train = right = torch.zeros((), device=device)
    for epoch in range(epochs + 1):
        loss_train, right = torch.zeros((), device=device), torch.zeros((), device=device)
        for index in order:
            rows = index.to(device)
            batch, truth = images[rows].float(), labels[rows]
            if strategy:
                batch = DiffAugment(batch, strategy, param=param)
            logits = net(batch)
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
    # Another order than the stored one is drawn: reading anew draws what the public function draws.
    keep = isinstance(testloader, DataLoader) and isinstance(testloader.sampler, SequentialSampler)
    kept = _kept.get(testloader) if keep else None
    if isinstance(testloader, DataLoader) and kept is not None and kept[0][0].device == device:
        # What a pass over the loader draws, so that the networks after train as they would have.
        torch.empty((), dtype=torch.int64).random_(generator=testloader.generator)
        yield from kept
        return
    batches: _TestSet = []
    size, fits = 0, keep
    for datum in testloader:
        batch = datum[0].float().to(device), datum[1].long().to(device)
        yield batch
        size += batch[0].nbytes
        fits = fits and size * CACHE_SHARE <= free_memory(device)
        if fits:
            batches.append(batch)
        else:
            batches.clear()
    if fits and batches:
        _kept[testloader] = batches
