"""A step with partition, trained networks and cross-entropy against a plain transcription, with equal draws."""

from contextlib import closing

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from fastdm.augmentation import Strategy
from fastdm.condensation.build import build_networks, build_step
from fastdm.condensation.settings import Settings
from fastdm.condensation.work import count_work, flops_of
from fastdm.data.pool import Pool
from fastdm.kernels import draw
from fastdm.networks.drawn import TrainedNetworks
from fastdm.networks.trained import NetworkPool, flatten_parameters, in_memory_order, one_buffer
from fastdm.synthetic.initial import initial_images
from tests.oracles import CPU, apply_row, random_dataset

STEPS = 3
DATASET = random_dataset([24, 20, 31], (3, 16, 16))


def random_pool(networks: int, states: int, network: str = "ConvNetW32") -> NetworkPool:
    """Weights as an initialisation draws them, each state different."""
    shape, classes = DATASET.image_shape, DATASET.num_classes
    empty = NetworkPool(torch.empty(1, 1, _size(network)), network, shape, classes, DATASET.name)
    rows = []
    for seed in range(networks * states):
        torch.manual_seed(seed)
        built = empty.build()
        for module in built.modules():
            if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
                module.reset_parameters()
        rows.append(flatten_parameters(built))
    return NetworkPool(torch.stack(rows).view(networks, states, -1), network, shape, classes, DATASET.name)


def _size(network: str) -> int:
    from fastdm.networks.architectures import build_network

    built = build_network(network, channels=3, num_classes=3, image_size=16, affine=False)
    return sum(parameter.numel() for parameter in built.parameters())


def plain_network(row: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Embedding and logits of a ConvNetW32 whose parameters are a row of a pool."""
    start = 0

    def take(*shape: int) -> Tensor:
        nonlocal start
        size = torch.Size(shape).numel()
        start += size
        return row[start - size : start].view(shape).to(x.dtype)

    for channels in (3, 32, 32):
        x = functional.conv2d(x, take(32, channels, 3, 3), padding=1)
        x = functional.avg_pool2d(functional.instance_norm(x).relu(), 2)
    features = x.flatten(1)
    return features, features @ take(3, features.shape[1]).T + take(3)


def transcription(settings: Settings, pool: NetworkPool, dtype: torch.dtype) -> tuple[Tensor, list[list[float]]]:
    """The images in [0, 1] and the losses of every iteration, class by class, in pixels of [0, 1]."""
    networks = TrainedNetworks(pool, settings.ce_ahead, CPU, torch.float32)
    mean, std = (torch.tensor(values, dtype=dtype).view(1, 3, 1, 1) for values in (DATASET.mean, DATASET.std))
    f, classes = settings.partition, DATASET.num_classes
    start = initial_images(DATASET, settings.ipc, settings.seed, partition=f).to(dtype)
    canvases = (start * std + mean).view(classes, settings.ipc, 3, 16, 16)
    velocity = torch.zeros_like(canvases)
    side = 16 // f
    losses = []
    for iteration in range(STEPS):
        key = torch.tensor([settings.seed, iteration])
        which, state, later = (int(each) for each in networks.choose(key))
        row, expert = pool.weights[which, state], pool.weights[which, later]
        if settings.ce_ahead == 0:
            expert = row
        real = draw(key, DATASET.train.class_offsets, settings.batch_real)
        tables = Strategy.parse(settings.strategy, settings.aug_mode).draw(key, torch.arange(classes), (16, 16))

        def augment(x: Tensor, c: int, tables: list[Tensor] = tables) -> Tensor:
            for rows in tables:
                x = apply_row(x, rows[c])
            return x

        matching = cross_entropy = 0.0
        for c in range(classes):
            pixels = canvases[c].clone().requires_grad_()
            parts = [
                pixels[j : j + 1, :, y * side : (y + 1) * side, x * side : (x + 1) * side]
                for j in range(settings.ipc)
                for y in range(f)
                for x in range(f)
            ]
            decoded = functional.interpolate(torch.cat(parts), (16, 16), mode="bilinear", align_corners=False)
            synthetic = augment((decoded - mean) / std, c)
            target = plain_network(row, augment((DATASET.train.images[real[c]].to(dtype) / 255 - mean) / std, c))[0]
            distance = (target.mean(0) - plain_network(row, synthetic)[0].mean(0)).square().sum()
            labels = torch.full((len(synthetic),), c)
            loss = functional.cross_entropy(plain_network(expert, synthetic)[1], labels)
            (gradient,) = torch.autograd.grad(distance + settings.ce_weight * loss, pixels)
            velocity[c] = settings.momentum * velocity[c] + gradient
            matching += distance.item() / classes
            cross_entropy += loss.item() / classes
        assert settings.lr_img is not None
        canvases = (canvases - settings.lr_img * velocity).clamp(0, 1)
        losses.append([matching, cross_entropy])
    return canvases.flatten(0, 1), losses


def recipe(ahead: int) -> Settings:
    return Settings(
        ipc=2,
        batch_real=16,
        partition=2,
        networks="trained",
        network="ConvNetW32",
        ce_weight=2.5,
        ce_ahead=ahead,
        strategy="color_crop_cutout",
        aug_mode="M",
        lr_img=0.02,
        precision="fp32",
        seed=5,
    ).resolve(DATASET, CPU)


@pytest.mark.parametrize(("ahead", "chunk_memory"), [(2, 1 << 30), (0, 1 << 30), (2, 3 << 20)])
def test_a_step_of_the_recipe_equals_its_transcription(ahead: int, chunk_memory: int) -> None:
    settings = recipe(ahead)
    assert settings.clamp
    pool = random_pool(2, 4)
    exact, losses = transcription(settings, pool, torch.float64)
    yardstick = (transcription(settings, pool, torch.float32)[0] - exact).abs().max()
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (DATASET.mean, DATASET.std))
    step, plan = build_step(DATASET, settings, CPU, torch.float32, chunk_memory, pool)
    assert plan.chunk_classes == (3 if chunk_memory == 1 << 30 else 1)
    start = (step.images * std + mean).clone()
    with closing(step):
        found = []
        for iteration in range(STEPS):
            total = step(iteration)
            found.append(step.losses[1:].tolist())
            assert total.item() == pytest.approx(found[-1][0] + 2.5 * found[-1][1], rel=1e-6)
    images = step.images * std + mean
    assert (start - exact).abs().max() > 1000 * yardstick
    # What float32 makes of the transcription is the yardstick; a rewritten sum may lose a few times as much.
    assert (images - exact).abs().max() <= 8 * yardstick
    torch.testing.assert_close(torch.tensor(found), torch.tensor(losses), rtol=1e-4, atol=0)


def test_a_class_does_not_depend_on_those_that_it_is_computed_with() -> None:
    """To the last bit, the cross-entropy too, which is that of the class's number in the whole data set."""

    def run(part: Pool | None, chunk_memory: int | None = None) -> tuple[Tensor, Tensor]:
        step, _ = build_step(DATASET, recipe(2), CPU, torch.float32, chunk_memory, pool, part)
        with closing(step):
            for iteration in range(STEPS):
                step(iteration)
        return step.images, step.losses

    pool = random_pool(2, 4)
    whole, losses = run(None)
    assert torch.equal(run(None, 3 << 20)[0], whole)
    parts = [run(DATASET.train.classes(first, stop)) for first, stop in ((0, 1), (1, 3))]
    assert torch.equal(torch.cat([images for images, _ in parts]), whole)
    # A sum of three numbers, in another order.
    torch.testing.assert_close(sum(part for _, part in parts), losses, rtol=4 * 2**-23, atol=0)


@pytest.mark.parametrize(("ahead", "passed"), [(2, 2), (0, 1)])
def test_decoded_images_are_counted_in_each_network_that_they_pass(ahead: int, passed: int) -> None:
    networks = build_networks(DATASET, recipe(ahead), torch.device("meta"), torch.float32, random_pool(1, 3))
    work = count_work(networks, DATASET.train, recipe(ahead), torch.float32)
    real, decoded = 3 * 16, 3 * 2 * 4
    assert work.flops == (real + 2 * passed * decoded) * flops_of(networks.network, DATASET.image_shape)
    assert work.read == real * 3 * 16 * 16


def test_networks_and_states_are_drawn_uniformly_and_experts_later() -> None:
    networks, states, ahead, draws = 3, 5, 2, 6000
    drawn = TrainedNetworks(random_pool(networks, states), ahead, CPU, torch.float32)
    chosen = torch.tensor([[int(each) for each in drawn.choose(torch.tensor([7, step]))] for step in range(draws)])
    which, state, later = chosen.unbind(1)
    counts = torch.bincount(which * states + state, minlength=networks * states)
    expected = draws / (networks * states)
    # Four standard deviations of a binomial count.
    assert len(counts) == networks * states
    assert (counts - expected).abs().max() < 4 * expected**0.5
    for own in range(states):
        reached = sorted({max(own + more, 2) for more in range(ahead + 1) if own + more < states})
        seen = later[state == own]
        assert seen.unique().tolist() == reached
        if own >= 2:
            share = torch.bincount(seen - own).double() / len(seen)
            assert (share - 1 / len(reached)).abs().max() < 4 * (0.25 / len(seen)) ** 0.5


def test_the_weights_are_those_of_the_chosen_rows() -> None:
    pool = random_pool(2, 4)
    drawn = TrainedNetworks(pool, 2, CPU, torch.float32)
    key = torch.tensor([0, 3])
    drawn.draw(key)
    which, state, later = (int(each) for each in drawn.choose(key))
    assert torch.equal(flatten_parameters(drawn.network), pool.weights[which, state])
    assert torch.equal(flatten_parameters(drawn.expert), pool.weights[which, later])


def test_a_row_in_memory_order_is_set_by_one_copy() -> None:
    """As on a GPU, where every parameter's own copy would be a launch."""
    pool = random_pool(2, 3)
    network = pool.build()
    buffer = one_buffer(network)
    strides = [parameter.stride() for parameter in network.parameters()]
    assert strides == [parameter.stride() for parameter in pool.build().parameters()]
    buffer.copy_(in_memory_order(pool.weights, network)[1, 2])
    assert torch.equal(flatten_parameters(network), pool.weights[1, 2])
