"""What `fastdm.compat` saves in other code's loops: each call beside the public way, transcribed, in turns.

`python -m bench.drop_in` prints a line of JSON for each: milliseconds of both, their ratio, and how far the results are
apart. The images are random, of CIFAR-10's shape; the public way is float32, as there.
"""

import contextlib
import copy
import io
import json
import statistics
import time
from argparse import Namespace
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from fastdm.compat import DiffAugment, ParamDiffAug, RealImages, dm_loss, evaluate_synset
from fastdm.networks.architectures import build_network

CLASSES, SHAPE = 10, (3, 32, 32)
STRATEGY = "color_crop_cutout_flip_scale_rotate"
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


class _Images(Dataset[tuple[Tensor, int]]):
    """uint8 images that are converted and normalised when one is read, as torchvision's data sets are."""

    def __init__(self, images: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> None:
        self.images, self.labels = images, labels
        self._mean, self._std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        pixels = torch.from_numpy(self.images[index]).permute(2, 0, 1).contiguous().float().div(255)
        return pixels.sub_(self._mean).div_(self._std), int(self.labels[index])


def images_of(per_class: int, seed: int = 0) -> _Images:
    """Random images, as many of every class."""
    shape = (CLASSES * per_class, *SHAPE[1:], SHAPE[0])
    images = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    return _Images(images, np.arange(len(images)) % CLASSES)


def in_turns(ours: Callable[[], Any], public: Callable[[], Any], repeats: int) -> dict[str, Any]:
    """Median milliseconds of both, measured in turns after one call of each."""
    seconds: dict[str, list[float]] = {"ms": [], "public_ms": []}
    for repeat in range(repeats + 1):
        for name, call in (("ms", ours), ("public_ms", public)):
            start = time.perf_counter()
            call()
            if repeat:
                seconds[name].append(time.perf_counter() - start)
    found = {name: 1000 * statistics.median(values) for name, values in seconds.items()}
    return {**found, "ratio": found["public_ms"] / found["ms"], "repeats": repeats}


def public_evaluate_synset(net: nn.Module, images: Tensor, labels: Tensor, tests: DataLoader[Any], args: Any) -> float:
    """The test accuracy, as the public code trains and tests."""
    net.train()
    loader = DataLoader(torch.utils.data.TensorDataset(images, labels), args.batch_train, shuffle=True)
    optimizer = torch.optim.SGD(net.parameters(), args.lr_net, momentum=0.9, weight_decay=5e-4)
    for epoch in range(args.epoch_eval_train + 1):
        for batch, truth in loader:
            output = net(DiffAugment(batch, args.dsa_strategy, param=args.dsa_param))
            loss = nn.functional.cross_entropy(output, truth)
            loss.item()
            np.argmax(output.detach().cpu().numpy(), axis=-1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if epoch == args.epoch_eval_train // 2 + 1:
            optimizer = torch.optim.SGD(net.parameters(), 0.1 * args.lr_net, momentum=0.9, weight_decay=5e-4)
    net.eval()
    found = [(int((net(batch).argmax(1) == truth).sum()), len(truth)) for batch, truth in tests]
    return sum(right for right, _ in found) / sum(count for _, count in found)


def evaluation(ipc: int, epochs: int = 30, tests: int = 1000, repeats: int = 3) -> dict[str, Any]:
    """Training and testing one network on `ipc` images per class, after the first has read the test set."""
    data = images_of(ipc)
    images = torch.stack([data[i][0] for i in range(len(data))])
    labels = torch.from_numpy(data.labels)
    loader = DataLoader(images_of(tests // CLASSES, seed=1), batch_size=256)
    values = {"device": "cpu", "lr_net": 0.01, "epoch_eval_train": epochs, "batch_train": 256, "dsa": True}
    args = Namespace(**values, dsa_strategy=STRATEGY, dsa_param=ParamDiffAug())
    start = build_network("ConvNet", channels=3, num_classes=CLASSES, image_size=(32, 32))
    accuracies: dict[str, float] = {}

    def ours() -> None:
        torch.manual_seed(0)
        with contextlib.redirect_stdout(io.StringIO()):
            accuracies["ours"] = evaluate_synset(0, copy.deepcopy(start), images, labels, loader, args)[2]

    def public() -> None:
        torch.manual_seed(0)
        accuracies["public"] = public_evaluate_synset(copy.deepcopy(start), images, labels, loader, args)

    row = in_turns(ours, public, repeats)
    size = {"ipc": ipc, "epochs": epochs + 1, "test_images": tests}
    return {"call": "evaluate_synset", **size, **row, "error": abs(accuracies["ours"] - accuracies["public"])}


def set_up(per_class: int = 500, repeats: int = 3) -> dict[str, Any]:
    """Reading all images into tensors and taking a batch of one class from them."""
    data = images_of(per_class)
    batches: dict[str, Tensor] = {}

    def ours() -> None:
        real = RealImages((data.images, data.labels), mean=MEAN, std=STD)
        np.random.seed(0)  # noqa: NPY002
        batches["ours"] = real.get_images(3, 256)

    def public() -> None:
        images = torch.cat([torch.unsqueeze(data[i][0], dim=0) for i in range(len(data))])
        indices: list[list[int]] = [[] for _ in range(CLASSES)]
        for i in range(len(data)):
            indices[data[i][1]].append(i)
        np.random.seed(0)  # noqa: NPY002
        batches["public"] = images[np.random.permutation(indices[3])[:256]]  # noqa: NPY002

    row = in_turns(ours, public, repeats)
    error = float((batches["ours"] - batches["public"]).abs().max())
    return {"call": "RealImages", "images": len(data), **row, "error": error}


def matching(ipc: int, batch_real: int = 64, repeats: int = 3) -> dict[str, Any]:
    """The loss of one iteration and its gradient."""
    network: Any = build_network("ConvNet", channels=3, num_classes=CLASSES, image_size=(32, 32))
    real = torch.randn(CLASSES, batch_real, *SHAPE)
    synthetic = torch.randn(CLASSES * ipc, *SHAPE, requires_grad=True)
    param = ParamDiffAug()

    def ours() -> None:
        torch.autograd.grad(dm_loss(network.embed, synthetic, real, STRATEGY, seed=0), synthetic)

    def public() -> None:
        loss = torch.zeros(())
        for c in range(CLASSES):
            seen = DiffAugment(real[c], STRATEGY, seed=c, param=param)
            learnt = DiffAugment(synthetic[c * ipc : (c + 1) * ipc], STRATEGY, seed=c, param=param)
            target = network.embed(seen).detach()
            loss = loss + torch.sum((target.mean(0) - network.embed(learnt).mean(0)) ** 2)
        torch.autograd.grad(loss, synthetic)

    return {"call": "dm_loss", "ipc": ipc, "batch_real": batch_real, **in_turns(ours, public, repeats)}


def rows() -> list[dict[str, Any]]:
    """All cases. The public ways use our `DiffAugment` and networks, so that the loops alone are compared."""
    return [*(evaluation(ipc) for ipc in (1, 10, 50)), set_up(), *(matching(ipc) for ipc in (1, 10))]


def main() -> None:
    for row in rows():
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
