"""The memory plan: what is counted, what is refused, how the chunk follows the budget, where real images come from."""

from collections.abc import Callable
from typing import Literal

import pytest
import torch

from fastdm.condensation.plan import FREE_SHARE, LIBRARY_BYTES, MOST_ELEMENTS, MemoryPlan, make_plan
from fastdm.data.batches import DEPTH
from fastdm.data.pool import Pool
from fastdm.errors import FastDMError
from fastdm.kernels import stores_only_pooled
from fastdm.networks.architectures import build_network
from fastdm.networks.footprint import CACHE_BYTES, activations

CPU = torch.device("cpu")
GPU = torch.device("cuda", 0)
GIB = 1 << 30


def pool(
    classes: int, each: int, image_shape: tuple[int, ...] = (3, 32, 32), device: torch.device | None = None
) -> Pool:
    """One image in the memory of all: a plan looks at shapes and devices only."""
    images = torch.zeros(image_shape, dtype=torch.uint8, device="cpu" if device is None else device)
    return Pool(images.expand(classes * each, *image_shape), torch.arange(classes + 1) * each)


def plan(
    network: str = "ConvNet",
    images: Pool | None = None,
    *,
    ipc: int = 2,
    batch_real: int = 64,
    dtype: torch.dtype = torch.float32,
    device: torch.device = CPU,
    chunk_memory: int | None = None,
) -> MemoryPlan:
    images = pool(100, 1) if images is None else images
    channels, *size = images.images.shape[1:]
    built = build_network(network, channels=channels, num_classes=100, image_size=(size[0], size[1]), frozen=True)
    return make_plan(
        built, images, ipc=ipc, batch_real=batch_real, dtype=dtype, device=device, chunk_memory=chunk_memory
    )


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets the memory that a GPU has left, in GiB."""

    def of(size: float) -> None:
        monkeypatch.setattr("fastdm.condensation.plan.free_memory", lambda device: int(size * GIB))

    return of


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


@pytest.mark.parametrize(
    ("network", "peak"),
    [
        ("ConvNet", 128 * 32**2 + 128 * 16**2),  # a convolution and what is pooled of it
        ("ConvNetBN", 2 * 128 * 32**2),  # a convolution, normalised
        ("ResNet18", 4 * 64 * 32**2),  # the same with the copy that GroupNorm makes on a GPU, and the shortcut
    ],
)
def test_activations_that_are_needed_at_a_time(network: str, peak: int) -> None:
    built = build_network(network, channels=3, num_classes=10, image_size=(32, 32), frozen=True)
    counted = activations(built, (3, 32, 32), torch.float32)
    assert 4 * peak <= counted.peak <= 1.01 * 4 * peak  # means and deviations too


def test_activations_are_counted_in_inference_mode_too() -> None:
    """An evaluation asks for them there; and the way back to the image is that of a single convolution's gradient."""
    network = build_network("ConvNetD1", channels=3, num_classes=10, image_size=(32, 32), frozen=True)
    counted = activations(network, (3, 32, 32), torch.float32)
    with torch.inference_mode():
        assert activations(network, (3, 32, 32), torch.float32) == counted
    image, conv, pooled = 4 * 3 * 32**2, 4 * 128 * 32**2, 4 * 128 * 16**2
    # Its result is kept, and then there are its gradient and that of what was pooled.
    assert image + 2 * conv + pooled <= counted.both_ways <= 1.02 * (image + 2 * conv + 2 * pooled)


def test_what_is_between_the_layers_of_a_convnet() -> None:
    """Where blocks store only what they have pooled: the results of the first and of the second, 128·16² and 128·8²."""
    network = build_network("ConvNet", channels=3, num_classes=10, image_size=(32, 32), frozen=True)
    assert activations(network, (3, 32, 32), torch.float32).between == 4 * (128 * 16**2 + 128 * 8**2)


def test_a_plan_for_a_device_that_is_not_here() -> None:
    """What is left there is said in place of asked; nothing is drawn from it."""
    network = build_network("ConvNet", channels=3, num_classes=100, image_size=(32, 32), frozen=True)
    pools = [
        make_plan(network, pool(100, 1), ipc=2, batch_real=64, dtype=torch.float32, device=GPU, free=free * GIB)
        for free in (8, 80)
    ]
    images, parameters = 2 * 100 * 2 * 3 * 32 * 32 * 4, sum(each.numel() for each in network.parameters())
    assert all(each.graph_bytes == images + 8 * parameters for each in pools)
    assert pools[1].budget_bytes - pools[0].budget_bytes == pytest.approx(FREE_SHARE * 72 * GIB, abs=2)


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


def test_the_pairs_of_images_are_counted() -> None:
    """2000 real images of 8x8 are 1 MB, their features in an MLP too, but 4 million pairs with five bandwidths each are
    not."""
    images = pool(4, 2000, (1, 8, 8))
    network = build_network("MLP", channels=1, num_classes=4, image_size=8, frozen=True)

    def bytes_of(objective: Literal["mean", "mmd", "cov"]) -> int:
        made = make_plan(
            network, images, ipc=2, batch_real=2000, objective=objective, dtype=torch.float32, device=CPU, free=8 * GIB
        )
        return made.chunk_bytes // made.chunk_classes

    assert bytes_of("mmd") > 12 * 4 * 2000**2 > bytes_of("cov") > 2 * 4 * 2000**2 > bytes_of("mean")


def test_batch_norm_takes_all_classes_at_once() -> None:
    joint = plan("ConvNetBN", batch_real=2)
    assert joint.chunk_classes == 100
    assert joint.micro_batch >= 200
    with pytest.raises(FastDMError, match=r"all classes together \(the network has BatchNorm\) needs"):
        plan("ConvNetBN", chunk_memory=100 << 20)


def test_what_cannot_fit_is_refused_with_what_would() -> None:
    with pytest.raises(FastDMError, match=r"batch_real of at most (\d+) would fit") as refusal:
        plan(batch_real=10_000, chunk_memory=60 << 20)
    fits = int(str(refusal.value).split("at most ")[1].split()[0])
    assert plan(batch_real=fits, chunk_memory=60 << 20).chunk_classes == 1


def test_the_plan_in_words() -> None:
    text = str(plan())
    assert "pool 300 KiB, in place" in text
    assert "synthetic images with momentum 4.7 MiB" in text


IMAGENET = (1000, 1281, (3, 64, 64))
"""Classes, images of each, and their shape: 14.7 GiB."""
IMAGENET_BYTES = 1000 * 1281 * 3 * 64 * 64


@pytest.mark.parametrize(("size", "residence"), [(23, "streamed"), (29, "streamed"), (30, "copied"), (139, "copied")])
def test_a_gpu_gets_a_copy_of_what_fits_half_of_it(size: float, residence: str, card: Callable[[float], None]) -> None:
    card(size)
    found = plan(images=pool(*IMAGENET), ipc=10, batch_real=256, dtype=torch.bfloat16, device=GPU)
    assert found.residence == residence
    assert found.pool_bytes == IMAGENET_BYTES


@pytest.mark.parametrize("size", [23, 39, 79, 139])
@pytest.mark.parametrize("ipc", [1, 10, 50])
def test_a_plan_for_a_gpu_leaves_a_fifth_of_it(size: float, ipc: int, card: Callable[[float], None]) -> None:
    """What the plan counts, with the copy of the pool, the copies of images and momentum during the recording, and the
    libraries' memory."""
    card(size)
    found = plan(images=pool(*IMAGENET), ipc=ipc, batch_real=256, dtype=torch.bfloat16, device=GPU)
    copied = found.pool_bytes if found.residence == "copied" else 0
    taken = copied + 2 * found.images_bytes + found.real_bytes + found.synthetic_bytes + LIBRARY_BYTES
    assert found.real_bytes + found.synthetic_bytes <= found.budget_bytes
    assert taken <= FREE_SHARE * size * GIB + (1 - FREE_SHARE) * (copied + LIBRARY_BYTES + found.images_bytes)


def test_images_that_lie_on_the_device_are_not_copied(card: Callable[[float], None]) -> None:
    """However little is left; and nothing is taken off for them, since the free memory is without them."""
    device = torch.device("meta")
    card(10)
    there, nothing = (pool(classes, 1281, IMAGENET[2], device) for classes in (1000, 1))
    found = plan(images=there, ipc=1, batch_real=256, dtype=torch.bfloat16, device=device)
    assert found.residence == "in place"
    small = plan(images=nothing, ipc=1, batch_real=256, dtype=torch.bfloat16, device=device)
    images = 2 * 3 * 64 * 64 * 4
    assert small.budget_bytes - found.budget_bytes == pytest.approx(999 * images * (1 + FREE_SHARE), abs=9)


def test_batches_that_are_read_ahead_are_counted(card: Callable[[float], None]) -> None:
    one = 256 * 3 * 64 * 64
    found = []
    for size, residence in ((23, "streamed"), (39, "copied")):
        card(size)
        made = plan(images=pool(*IMAGENET), ipc=1, batch_real=256, dtype=torch.bfloat16, device=GPU)
        assert (made.residence, made.chunk_classes) == (residence, 15)
        found.append(made.real_bytes)
    assert found[0] - found[1] == DEPTH * 15 * one


def test_a_pool_is_read_ahead_where_its_copy_would_leave_too_little(card: Callable[[float], None]) -> None:
    """BatchNorm's only chunk, 25,600 images of 32×32, needs most of the card, though half of it would hold the pool."""
    card(16)
    images = pool(100, 25_000)
    assert plan(images=images, batch_real=256, dtype=torch.bfloat16, device=GPU).residence == "copied"
    joint = plan("ConvNetBN", images, batch_real=140, dtype=torch.bfloat16, device=GPU)
    assert joint.residence == "streamed"
    assert joint.real_bytes + joint.synthetic_bytes <= joint.budget_bytes


@pytest.mark.parametrize(
    ("network", "side", "largest", "classes", "micro_batch"),
    [
        ("ConvNet", 32, 128 * 32**2, 63, 63 * 256),
        ("ConvNet", 64, 128 * 64**2, 15, 15 * 256),
        ("ConvNetD5", 128, 128 * 128**2, 3, 3 * 256),
        ("ConvNetD6", 224, 128 * 224**2, 1, 256),
        ("ConvNetD6", 256, 128 * 256**2, 1, 255),  # 256 images have 2^31 elements
        ("ResNet18", 64, 64 * 64**2, 31, 31 * 256),
        ("ResNet18", 224, 64 * 224**2, 2, 2 * 256),
        ("ConvNetBN", 64, 128 * 64**2, 100, 100 * 256),  # its statistics need all
    ],
)
def test_no_tensor_on_a_gpu_has_more_elements_than_cudnn_counts(
    network: str, side: int, largest: int, classes: int, micro_batch: int, card: Callable[[float], None]
) -> None:
    card(1000)
    found = plan(network, pool(100, 300, (3, side, side)), ipc=1, batch_real=256, dtype=torch.bfloat16, device=GPU)
    assert (found.chunk_classes, found.micro_batch) == (classes, micro_batch)
    if network != "ConvNetBN":
        assert found.micro_batch * largest <= MOST_ELEMENTS < (found.micro_batch + 256) * largest
