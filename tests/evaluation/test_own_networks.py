"""Networks that users bring: any module that gives logits."""

import dataclasses
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet18

from fastdm.condensation.loop import condense
from fastdm.data import Dataset, open_dataset
from fastdm.errors import FastDMError
from fastdm.evaluation.measure import evaluate
from fastdm.evaluation.outcome import Evaluation
from fastdm.networks.own import build_own, network_name
from fastdm.synthetic.initial import random_selection


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return open_dataset("digits")


@pytest.fixture(scope="module")
def colours() -> Dataset:
    """Two classes of 16x16 images, one darker than the other."""
    labels = torch.arange(24) % 2
    noise = torch.randint(0, 100, (24, 3, 16, 16), generator=torch.Generator().manual_seed(0))
    images = (noise + 120 * labels[:, None, None, None]).to(torch.uint8)
    return open_dataset((images[:16], labels[:16], images[16:], labels[16:]), name="colours")


def linear() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


def on(dataset: Dataset, *networks: object, **options: object) -> Evaluation:
    train = random_selection(dataset, 4)
    return evaluate(train, dataset, networks=networks, device="cpu", **options)  # type: ignore[arg-type]


def test_a_resnet_of_torchvision_learns(colours: Dataset) -> None:
    found = on(colours, partial(resnet18, num_classes=2), "MLP", num_eval=1, epochs=20, strategy="none")
    assert list(found.accuracies) == ["resnet18", "MLP"]
    assert found.accuracies["resnet18"] == [1.0]


def test_weights_are_drawn_from_the_seed_and_the_number(digits: Dataset) -> None:
    options = {"epochs": 1, "lr_net": 1e-5}
    state = torch.get_rng_state()
    four = on(digits, linear, num_eval=4, **options).accuracies["linear"]
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(9)  # must not matter
    assert on(digits, linear, num_eval=2, **options).accuracies["linear"] == four[:2]
    assert on(digits, linear, num_eval=4, seed=1, **options).accuracies["linear"] != four
    assert len(set(four)) > 1


def test_names_are_those_of_the_functions() -> None:
    class Build:
        def __call__(self) -> nn.Module:
            return linear()

    builders = ("MLP", linear, partial(linear), nn.Identity, Build(), lambda: linear())
    assert [network_name(each) for each in builders] == ["MLP", "linear", "linear", "Identity", "Build", "<lambda>"]


class Refusing(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        raise ValueError("needs 3 channels\nand more")


def test_a_set_of_an_own_network_asks_for_its_function(digits: Dataset) -> None:
    made = dataclasses.replace(random_selection(digits, 1), settings={"network": "linear"})
    with pytest.raises(FastDMError, match="condensed in linear, which is not a network that fastdm knows"):
        evaluate(made, digits, device="cpu")
    assert [*evaluate(made, digits, networks=[linear], num_eval=1, epochs=1, device="cpu").mean] == ["linear"]


class WithAuxiliary(nn.Module):
    """As torchvision's GoogLeNet: besides its logits it gives others, but only while it is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = linear()

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        logits: Tensor = self.layers(images)
        return (logits, logits) if self.training else logits


ALWAYS_THE_SAME = linear()


@pytest.mark.parametrize(
    ("networks", "message"),
    [
        ([lambda: 3], "<lambda> gives a int; it must build a torch.nn.Module"),
        ([Refusing], "Refusing cannot take 1x8x8 images: needs 3 channels$"),
        ([nn.Flatten], r"Flatten gives \[2, 64\] for 2 images; it must give logits, a tensor \[2, 10\]"),
        ([7], "networks has a int in it; each must be a name, or a function"),
        ([linear, partial(linear)], "two networks are called linear; build each in a function that has a name"),
        (linear, "it must be a list of at least one name"),
        ([linear()], "the network is a Sequential itself; give a function without arguments that builds one anew"),
        ([nn.Linear], r"calling Linear\(\) to build a network failed: .*missing 2 required"),
        (
            [lambda: nn.Sequential(nn.Flatten(), nn.AdaptiveAvgPool1d(10))],
            "<lambda> has no parameters that can be trained",
        ),
        ([WithAuxiliary], r"WithAuxiliary gives a tuple for 2 images while it is trained; it must give logits"),
        ([lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(10))], "<lambda> gives lazy layers that are not init"),
        ([lambda: ALWAYS_THE_SAME], "<lambda> gives the same module each time, whose weights are changed"),
    ],
)
def test_what_cannot_be_trained(networks: list[object], message: str, digits: Dataset) -> None:
    with pytest.raises(FastDMError, match=message):
        evaluate(random_selection(digits, 1), digits, networks=networks, device="cpu")  # type: ignore[arg-type]


def test_weights_of_another_type_than_the_images_are_noticed_at_once(digits: Dataset) -> None:
    """The default type decides what layers are made of; images are float32 all the same."""
    images = random_selection(digits, 1)
    torch.set_default_dtype(torch.float64)
    try:
        with pytest.raises(FastDMError, match=r"linear cannot take 1x8x8 images: .*dtype"):
            evaluate(images, digits, networks=[linear], device="cpu")
    finally:
        torch.set_default_dtype(torch.float32)


class Public(nn.Module):
    """A block, and the classifier on it as the public code has it: a `view` takes contiguous tensors only."""

    def __init__(self, begins_with_view: bool) -> None:
        super().__init__()
        layers = (nn.Conv2d(3, 32, 3, padding=1), nn.GroupNorm(32, 32), nn.ReLU(inplace=True), nn.AvgPool2d(2))
        self.features = nn.Sequential() if begins_with_view else nn.Sequential(*layers)
        self.classifier = nn.Linear(3 * 256 if begins_with_view else 32 * 64, 2)

    def embed(self, images: Tensor) -> Tensor:
        features = self.features(images)
        return features.view(features.size(0), -1)  # type: ignore[no-any-return]

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.embed(images))  # type: ignore[no-any-return]


@pytest.mark.parametrize("begins_with_view", [False, True])
def test_a_network_that_needs_contiguous_images_gets_them(begins_with_view: bool, colours: Dataset) -> None:
    found = on(colours, partial(Public, begins_with_view), num_eval=1, epochs=20, strategy="none")
    assert found.accuracies["Public"] == [1.0]
    images = condense(
        colours, network=partial(Public, begins_with_view), ipc=1, iterations=2, batch_real=4, device="cpu"
    ).images
    assert images.isfinite().all()


def test_networks_that_are_built_at_the_same_time_draw_what_each_draws_alone() -> None:
    def build() -> nn.Module:
        first = nn.Linear(4, 4)
        time.sleep(0.01)  # the others would begin here
        return nn.Sequential(first, nn.Linear(4, 4))

    state = torch.get_rng_state()
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(partial(build_own, build), range(4)))
    assert torch.equal(torch.get_rng_state(), state)
    for seed, found in enumerate(together):
        for value, alone in zip(found.parameters(), build_own(build, seed).parameters(), strict=True):
            assert torch.equal(value, alone)


class Viewing(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.view(len(images), -1)


@pytest.mark.parametrize(("last", "format"), [(nn.Flatten, torch.channels_last), (Viewing, torch.contiguous_format)])
def test_the_choice_of_a_format_changes_nothing_else(last: type[nn.Module], format: torch.memory_format) -> None:
    def build() -> nn.Module:
        return nn.Sequential(nn.BatchNorm2d(3).eval(), nn.Dropout(), nn.Conv2d(3, 4, 3), last())

    state = torch.get_rng_state()
    found = build_own(build, 0, image_shape=(3, 8, 8))
    assert torch.equal(torch.get_rng_state(), state)
    assert found[2].weight.is_contiguous(memory_format=format)  # type: ignore[index, union-attr]
    torch.manual_seed(0)
    built = build()
    assert all(torch.equal(value, built.state_dict()[name]) for name, value in found.state_dict().items())
    assert [layer.training for layer in found.children()] == [layer.training for layer in built.children()]
