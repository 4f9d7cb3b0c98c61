"""The memory plan: what is counted, what is refused, how the chunk follows the budget."""

import pytest
import torch

from fastdm.condensation.plan import MemoryPlan, make_plan
from fastdm.errors import FastDMError
from fastdm.kernels import stores_only_pooled
from fastdm.networks.architectures import build_network
from fastdm.networks.footprint import CACHE_BYTES, activations

CPU = torch.device("cpu")


def plan(**changes: object) -> MemoryPlan:
    arguments: dict[str, object] = {
        "image_shape": (3, 32, 32),
        "num_classes": 100,
        "ipc": 2,
        "batch_real": 64,
        "pool_bytes": 1000,
        "dtype": torch.float32,
        "device": CPU,
        "network": "ConvNet",
    }
    arguments.update(changes)
    name = arguments.pop("network")
    network = build_network(str(name), channels=3, num_classes=100, image_size=(32, 32), frozen=True)
    return make_plan(network, **arguments)  # type: ignore[arg-type]


def test_activations_of_a_convnet_counted_by_hand() -> None:
    """Per 32×32 image and width 128 in float32: conv 128·32² and pool 128·16² values, then a quarter at every level."""
    network = build_network("ConvNet", channels=3, num_classes=10, image_size=(32, 32), frozen=True)
    counted = activations(network, (3, 32, 32), torch.float32)
    image = 3 * 32 * 32 * 4
    convs, pools = [4 * 128 * side**2 for side in (32, 16, 8)], [4 * 128 * side**2 for side in (16, 8, 4)]
    assert counted.largest == convs[0]
    # In between, norm, activation and pooling are one op or three; means and deviations are small beside the rest.
    assert image + sum(convs) + sum(pools) <= 1.01 * counted.total <= 1.05 * (image + 2 * sum(convs) + sum(pools))
    half = activations(network, (3, 32, 32), torch.bfloat16)
    assert half.largest == counted.largest // 2


def test_the_chunk_follows_the_budget() -> None:
    """On a CPU a chunk is never larger than its cache; a budget below that makes it smaller, never over the budget."""
    free = plan()
    per_image = activations(
        build_network("ConvNet", channels=3, num_classes=100, image_size=(32, 32), frozen=True),
        (3, 32, 32),
        torch.float32,
    )
    assert free.chunk_classes == CACHE_BYTES // per_image.largest // 2
    # With the extension, a block stores its pooled result only, unless a gradient will be asked for.
    stored = per_image.largest // (4 if stores_only_pooled(torch.empty(0), torch.empty(128, 3, 3, 3)) else 1)
    assert free.micro_batch * stored <= CACHE_BYTES
    sizes = []
    for budget in (50 << 20, 80 << 20, 160 << 20):
        limited = plan(chunk_memory=budget)
        assert limited.real_bytes + limited.synthetic_bytes <= budget
        sizes.append(limited.chunk_classes)
    assert sizes == sorted(sizes)
    assert sizes[0] < free.chunk_classes


def test_batch_norm_takes_all_classes_at_once() -> None:
    joint = plan(network="ConvNetBN", batch_real=2)
    assert joint.chunk_classes == 100
    assert joint.micro_batch >= 200
    with pytest.raises(FastDMError, match=r"all classes together \(the network has BatchNorm\) needs"):
        plan(network="ConvNetBN", chunk_memory=100 << 20)


def test_what_cannot_fit_is_refused_with_what_would() -> None:
    with pytest.raises(FastDMError, match=r"batch_real of at most (\d+) would fit") as refusal:
        plan(batch_real=10_000, chunk_memory=60 << 20)
    fits = int(str(refusal.value).split("at most ")[1].split()[0])
    assert plan(batch_real=fits, chunk_memory=60 << 20).chunk_classes == 1


def test_the_plan_in_words() -> None:
    text = str(plan())
    assert "pool 1000 B" in text
    assert "synthetic images with momentum and gradient 7.0 MiB" in text
