"""Images matched in a network of the user's own."""

import dataclasses
import json
import warnings
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fastdm
from fastdm.errors import FastDMError
from fastdm.networks.drawn import BuiltNetworks
from fastdm.networks.own import build_own_frozen, can_be_drawn, layers_crc32
from fastdm.runs.checkpoint import FILE, read_checkpoint, save_checkpoint

QUICK = {"ipc": 1, "iterations": 3, "batch_real": 8, "device": "cpu", "precision": "fp32"}


class Plain(nn.Module):
    """What "ConvNet-d1-w8-relu-none-avg" is, for 1-channel images."""

    def __init__(self, *between: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 8, 3, padding=3), *between, nn.ReLU(), nn.AvgPool2d(2))

    def embed(self, images: Tensor) -> Tensor:
        return torch.as_tensor(self.body(images))


class Detached(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.detach()


class Overwritten(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x.sigmoid()
        y.mul_(2)  # the gradient of sigmoid is computed from what it gave
        return y


class Empty(Plain):
    """Has no features."""

    def embed(self, images: Tensor) -> Tensor:
        return super().embed(images)[:, :0]


ONE = Plain()


def test_the_same_layers_give_the_same_images() -> None:
    own = fastdm.condense("digits", network=Plain, **QUICK)  # type: ignore[arg-type]
    named = fastdm.condense("digits", network="ConvNet-d1-w8-relu-none-avg", **QUICK)  # type: ignore[arg-type]
    start = fastdm.random_selection("digits", ipc=1)
    moved = (named.images - start.images).abs().max()
    assert moved > 1e-3
    # The layers are the same ones in another order of operations at most; a step of rounding is far below what moved.
    assert (own.images - named.images).abs().max() <= 1e-4 * moved
    assert own.settings["network"] == "Plain"


def test_batch_norm_looks_at_all_classes() -> None:
    def normed() -> nn.Module:
        return Plain(nn.BatchNorm2d(8))

    found = fastdm.condense("digits", network=normed, **QUICK)  # type: ignore[arg-type]
    assert found.images.isfinite().all()
    assert not torch.equal(found.images, fastdm.random_selection("digits", ipc=1).images)


class Flat(nn.Module):
    """BatchNorm of flat features."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU())

    def embed(self, images: Tensor) -> Tensor:
        return torch.as_tensor(self.body(images))


def test_batch_norm_of_any_dimension_has_all_classes_in_one_chunk() -> None:
    """By the memory of a chunk: if it is too little for all classes, it is refused, and no result depends on it."""
    with pytest.raises(FastDMError, match=r"all classes together \(the network has BatchNorm\) needs"):
        fastdm.condense("digits", network=Flat, chunk_memory=100_000, **QUICK)  # type: ignore[arg-type]


class Scaled(nn.Module):
    """A layer with a parameter of its own kind, which the module draws itself."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(1 + torch.rand(8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x


def test_other_layers_are_built_anew_in_every_iteration_by_the_seed(tmp_path: Path) -> None:
    drawn: list[Tensor] = []

    def scaled() -> nn.Module:
        network = Plain(Scaled())
        drawn.append(network.body[1].scale.detach().clone())
        return network

    state = torch.get_rng_state()
    images = fastdm.condense("digits", network=scaled, **QUICK).images  # type: ignore[arg-type]
    assert torch.equal(torch.get_rng_state(), state)
    assert len({tuple(each.flatten().tolist()) for each in drawn[-3:]}) == 3
    assert not torch.equal(images, fastdm.condense("digits", network=scaled, seed=1, **QUICK).images)  # type: ignore[arg-type]
    # What is resumed is what was not interrupted.
    part = {**QUICK, "iterations": 2, "save_path": tmp_path / "run"}
    fastdm.condense("digits", network=scaled, **part)  # type: ignore[arg-type]
    whole = {**QUICK, "save_path": tmp_path / "run", "resume": True}
    assert torch.equal(fastdm.condense("digits", network=scaled, **whole).images, images)  # type: ignore[arg-type]


def test_the_weights_are_those_that_the_module_draws_itself() -> None:
    def scaled() -> nn.Module:
        return Plain(Scaled())

    network = build_own_frozen(scaled, (1, 8, 8), 10, torch.device("cpu"), torch.float32)
    BuiltNetworks(network, scaled).draw(torch.tensor([3, 5]))
    with torch.random.fork_rng():
        torch.manual_seed(((3 << 32) + 5) % ((1 << 61) - 1))
        drawn = [*scaled().parameters()]
    assert all(torch.equal(mine, own) for mine, own in zip(network.parameters(), drawn, strict=True))
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_weights_that_are_made_of_others_are_not_drawn_as_weights() -> None:
    """Lengths drawn as weights are would be below 0 or far too small."""

    def weight_normed() -> nn.Module:
        network = Plain()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch has another way to say it by now
            torch.nn.utils.weight_norm(network.body[0])
        return network

    assert can_be_drawn(Plain())
    assert not can_be_drawn(weight_normed())


class InPlace(Plain):
    """Changes the images that are condensed."""

    def embed(self, images: Tensor) -> Tensor:
        return super().embed(images.mul_(2))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: nn.Linear(64, 10), "<lambda> has no method embed"),
        (lambda: Plain(nn.Dropout(0.5)), "has a Dropout, whose draws do not follow from the seed"),
        (lambda: Plain(nn.Conv2d(3, 8, 1)), "<lambda> cannot take 1x8x8 images: Given groups=1"),
        (lambda: InPlace(), "<lambda> cannot take 1x8x8 images: a leaf Variable that requires grad"),
        (Plain(), "the network is a Plain itself; give a function without arguments that builds one anew"),
        (lambda: 1 / 0, r"calling <lambda>\(\) to build a network failed: division by zero"),
        (lambda: Plain(Detached()), "the embed of <lambda> must give features that have a gradient"),
        (lambda: Plain(Overwritten()), "<lambda> cannot take 1x8x8 images: one of the variables needed for gradient"),
        (lambda: Empty(), "the embed of <lambda> must give a tensor of features"),
        (lambda: Plain().to("meta"), "<lambda> gives a module on the device meta"),
        (lambda: ONE, "<lambda> gives the same module each time, whose weights are changed; build a new one in it"),
    ],
)
def test_what_images_cannot_be_matched_in(build: object, message: str) -> None:
    with pytest.raises(FastDMError, match=message):
        fastdm.condense("digits", network=build, **QUICK)  # type: ignore[arg-type]


def wide(channels: int) -> nn.Module:
    network = Plain()
    network.body[0] = nn.Conv2d(1, channels, 3, padding=3)
    return network


def test_a_run_is_not_resumed_in_another_network_of_the_same_name(tmp_path: Path) -> None:
    """That of a partial is the inner function's."""
    options = {**QUICK, "save_path": tmp_path / "run"}
    fastdm.condense("digits", network=partial(wide, 4), **options)  # type: ignore[arg-type]
    options |= {"iterations": 4, "resume": True}
    with pytest.raises(FastDMError, match=r"network_layers_crc32 was \d+ and is \d+\); resume with the same ones"):
        fastdm.condense("digits", network=partial(wide, 8), **options)  # type: ignore[arg-type]
    fastdm.condense("digits", network=partial(wide, 4), **options)  # type: ignore[arg-type]


def test_layers_are_the_same_wherever_their_functions_are_in_memory() -> None:
    class Applied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.function = lambda x: x

        def extra_repr(self) -> str:
            return repr(self.function)

    first, second = Applied(), Applied()
    assert str(first) != str(second)
    assert layers_crc32(first) == layers_crc32(second)
    assert layers_crc32(first) != layers_crc32(nn.Sequential(first))


def test_a_run_of_before_layers_were_compared_is_resumed(tmp_path: Path) -> None:
    options = {**QUICK, "save_path": tmp_path}
    fastdm.condense("digits", network=Plain, **options)  # type: ignore[arg-type]
    saved = read_checkpoint(tmp_path / FILE)
    settings = json.loads(saved.settings)
    del settings["network_layers_crc32"]
    save_checkpoint(tmp_path, dataclasses.replace(saved, settings=json.dumps(settings)))
    fastdm.condense("digits", network=Plain, **options, resume=True)  # type: ignore[arg-type]


def test_a_network_that_is_called_like_another_is_not_taken_for_it() -> None:
    class ConvNet(Plain):
        pass

    found = fastdm.condense("digits", network=ConvNet, **QUICK)  # type: ignore[arg-type]
    assert found.settings["network"] == "ConvNet (own)"
    with pytest.raises(FastDMError, match=r"was condensed in ConvNet \(own\), which is not a network that fastdm"):
        fastdm.evaluate(found, "digits", num_eval=1, epochs=1, device="cpu")


def test_settings_hold_a_name() -> None:
    with pytest.raises(FastDMError, match="network is a type; in settings it must be a name"):
        fastdm.Settings(network=Plain)  # type: ignore[arg-type]
