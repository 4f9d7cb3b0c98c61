"""The protocol of IDC written out, and what an evaluation must not depend on."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from fastdm.augmentation import DSA_STRATEGY
from fastdm.data import Dataset
from fastdm.errors import FastDMError
from fastdm.evaluation.measure import evaluate, recorded_settings
from fastdm.evaluation.mixing import draw_mixture
from fastdm.evaluation.protocol import Protocol
from fastdm.evaluation.training import LabelledImages, train_network
from fastdm.networks import footprint
from fastdm.networks.architectures import build_network
from fastdm.networks.model import Network, initialise
from fastdm.synthetic.initial import random_selection
from tests.oracles import random_dataset

CPU = torch.device("cpu")
TINY = "ConvNetD1"


@pytest.fixture(scope="module")
def blobs() -> Dataset:
    dataset = random_dataset([12, 12, 12], shape=(1, 8, 8))
    return dataclasses.replace(dataset, test=dataset.train)


def tiny() -> Network:
    return build_network(TINY, channels=1, num_classes=3, image_size=8)


def weights(network: Network) -> Tensor:
    """All parameters but the convolutions' biases, which decide nothing in front of an InstanceNorm."""
    named = network.named_parameters()
    return torch.cat([parameter.detach().flatten() for name, parameter in named if not name.endswith("conv.bias")])


@pytest.mark.parametrize("cache_bytes", [1 << 24, 1], ids=["whole batches", "image by image"])
def test_training_is_the_literal_protocol_of_idc(
    blobs: Dataset, cache_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MultiStepLR, no epoch more, the momentum kept, and of a mixed batch the cross-entropies of both labels."""
    monkeypatch.setattr(footprint, "CACHE_BYTES", cache_bytes)
    examples = LabelledImages.of(random_selection(blobs, 4), blobs.mean, blobs.std, CPU)
    shown: list[int] = []
    batch = LabelledImages.batch

    def record(self: LabelledImages, index: Tensor, *tables: list[Tensor]) -> Tensor:
        shown.extend(index.tolist())
        return batch(self, index, *tables)

    network, literal = tiny(), tiny()
    protocol = Protocol(["ConvNet"], "none", epochs=12, lr_net=0.05, batch_train=8, name="idc")
    with monkeypatch.context() as patched:
        patched.setattr(LabelledImages, "batch", record)
        train_network(network, examples, protocol, 0, torch.float32)
    assert len(shown) == 12 * 12

    initialise(literal, torch.tensor([1 << 62, 0]))
    start = weights(literal)
    optimizer = torch.optim.SGD(literal.parameters(), 0.05, momentum=0.9, weight_decay=5e-4)
    rates = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2 * 12 // 3, 5 * 12 // 6], gamma=0.2)
    shares = []
    for step in range(12 * 2):
        index = torch.tensor(shown[: 8 - 4 * (step % 2)])
        del shown[: len(index)]
        mixture = draw_mixture(torch.tensor([1 << 62, step]), torch.arange(len(index)), (8, 8))
        labels, share = examples.labels[index], mixture.share.item()
        logits = literal(mixture(examples.images[index]))
        own, others = (functional.cross_entropy(logits, each) for each in (labels, labels[mixture.partner]))
        optimizer.zero_grad()
        (share * own + (1 - share) * others).backward()
        optimizer.step()
        if step % 2:
            rates.step()
        shares.append(share)
    assert min(shares) < 0.6 < max(shares) == 1
    moved = (weights(literal) - start).abs().max()
    # 24 steps, of which each rounds sums of up to 8 * 144 products.
    assert (weights(network) - weights(literal)).abs().max() <= 24 * math.sqrt(8 * 144) * 2**-23 * moved * 4
    assert moved > 0.01


def test_a_test_on_the_way_changes_nothing(blobs: Dataset) -> None:
    """Above all not the statistics that BatchNorm takes while it is trained."""
    options = {"networks": ["ConvNet-d1-w8-relu-batch-avg"], "num_eval": 2, "epochs": 30, "lr_net": 0.05, "device": CPU}
    images = random_selection(blobs, 4)
    once, often = (evaluate(images, blobs, checks=checks, **options) for checks in (1, 4))  # type: ignore[arg-type]
    assert once.confusion == often.confusion


def test_test_images_are_normalised_as_the_set_is(blobs: Dataset) -> None:
    """A set that was condensed under another normalisation than the data set is opened with now."""
    options = {"networks": [TINY], "num_eval": 2, "epochs": 30, "lr_net": 0.05, "strategy": "none", "device": CPU}
    other = dataclasses.replace(blobs, mean=(0.9,), std=(0.1,))
    images = random_selection(other, 2)
    found = evaluate(images, other, **options)  # type: ignore[arg-type]
    assert evaluate(images, blobs, **options) == found  # type: ignore[arg-type]
    as_it_is = dataclasses.replace(images, mean=blobs.mean, std=blobs.std)
    assert evaluate(as_it_is, blobs, **options) != found  # type: ignore[arg-type]


def test_a_set_whose_families_acted_together_is_evaluated_by_one_at_a_time(blobs: Dataset) -> None:
    recorded = {"network": TINY, "strategy": "crop_scale"}
    images = dataclasses.replace(random_selection(blobs, 1), settings=recorded)
    assert recorded_settings(images, blobs) == (TINY, "crop_scale")
    images = dataclasses.replace(images, settings={**recorded, "aug_mode": "M"})
    assert recorded_settings(images, blobs) == (TINY, DSA_STRATEGY)


def test_networks_may_come_from_any_iterable(blobs: Dataset) -> None:
    options = {"num_eval": 1, "epochs": 1, "device": CPU}
    found = evaluate(random_selection(blobs, 1), blobs, networks=(name for name in (TINY, "MLP")), **options)  # type: ignore[arg-type]
    assert list(found.accuracies) == [TINY, "MLP"]
    with pytest.raises(FastDMError, match="networks is 7; it must be a list"):
        evaluate(random_selection(blobs, 1), blobs, networks=7, **options)  # type: ignore[arg-type]
