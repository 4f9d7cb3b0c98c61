import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from fastdm.augmentation import DSA_STRATEGY
from fastdm.condensation.loop import condense
from fastdm.data import Dataset, open_dataset
from fastdm.errors import FastDMError
from fastdm.evaluation import trial
from fastdm.evaluation.ensemble import position
from fastdm.evaluation.measure import evaluate, recorded_settings
from fastdm.evaluation.outcome import Evaluation
from fastdm.evaluation.protocol import Protocol
from fastdm.evaluation.testing import accuracy
from fastdm.evaluation.training import LabelledImages, train_network
from fastdm.kernels import table
from fastdm.networks import footprint
from fastdm.networks.architectures import build_network
from fastdm.networks.model import Network, NormedConv2d, initialise
from fastdm.synthetic.initial import random_selection, whole_set
from tests.oracles import random_dataset

CPU = torch.device("cpu")
TINY = "ConvNetD1"


@pytest.fixture(scope="module")
def blobs() -> Dataset:
    """Three classes of 8x8 pictures with a bright left, middle or right, under noise."""
    rng = np.random.default_rng(0)

    def part(n: int) -> tuple[np.ndarray, np.ndarray]:
        labels = np.arange(n) % 3
        images = rng.integers(0, 120, (n, 8, 8))
        for image, label in zip(images, labels, strict=True):
            image[:, 3 * label : 3 * label + 2] += 100
        return images.astype(np.uint8), labels

    return open_dataset((*part(60), *part(30)), name="blobs")


def tiny(name: str = TINY) -> Network:
    return build_network(name, channels=1, num_classes=3, image_size=8)


def examples_of(dataset: Dataset, ipc: int = 4) -> LabelledImages:
    return LabelledImages.of(random_selection(dataset, ipc), dataset.mean, dataset.std, CPU)


def weights(network: Network) -> Tensor:
    """All parameters but the convolutions' biases, which decide nothing in front of an InstanceNorm."""
    named = network.named_parameters()
    return torch.cat([parameter.detach().flatten() for name, parameter in named if not name.endswith("conv.bias")])


# --- what is trained on ----------------------------------------------------------------------------------------------


def test_random_selection_is_where_condense_starts(blobs: Dataset) -> None:
    chosen = random_selection(blobs, 5, seed=3)
    assert torch.equal(chosen.images, condense(blobs, 5, iterations=0, seed=3, device="cpu").images)
    assert not torch.equal(chosen.images, random_selection(blobs, 5, seed=4).images)
    pool = (blobs.train.images / 255 - blobs.mean[0]) / blobs.std[0]
    offsets = blobs.train.class_offsets
    for row, label in enumerate(chosen.labels):
        same = (pool[offsets[label] : offsets[label + 1]] - chosen.images[row]).abs().amax((1, 2, 3)) < 1e-5
        assert same.sum() == 1
    assert len(chosen.images.flatten(1).unique(dim=0)) == len(chosen) == 15


def test_a_pool_is_normalised_batch_by_batch(blobs: Dataset) -> None:
    examples = LabelledImages.of(whole_set(blobs), blobs.mean, blobs.std, CPU)
    index = torch.tensor([5, 0, 59])
    expected = (blobs.train.images[index].double() / 255 - blobs.mean[0]) / blobs.std[0]
    assert examples.images.dtype == torch.uint8
    torch.testing.assert_close(examples.batch(index).double(), expected, rtol=0, atol=1e-6)
    assert examples.labels[index].tolist() == [0, 0, 2]


# --- training --------------------------------------------------------------------------------------------------------


def train_literally(network: Network, images: Tensor, labels: Tensor, epochs: int, lr: float) -> None:
    """The protocol with one batch per epoch and without augmentation, written out, every bias added."""
    for module in network.modules():
        if isinstance(module, NormedConv2d):
            module.__class__ = torch.nn.Conv2d
    parameters = list(network.parameters())
    velocity = [torch.zeros_like(parameter) for parameter in parameters]
    for epoch in range(epochs + 1):
        loss = functional.cross_entropy(network(images), labels)
        with torch.no_grad():
            for parameter, v, gradient in zip(parameters, velocity, torch.autograd.grad(loss, parameters), strict=True):
                v.mul_(0.9).add_(gradient + 5e-4 * parameter)
                parameter.sub_(lr * v)
        if epoch == epochs // 2 + 1:
            lr *= 0.1
            velocity = [torch.zeros_like(parameter) for parameter in parameters]


@pytest.mark.parametrize("cache_bytes", [1 << 24, 1], ids=["whole batches", "image by image"])
def test_training_is_the_literal_protocol(blobs: Dataset, cache_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(footprint, "CACHE_BYTES", cache_bytes)
    examples = examples_of(blobs)
    network, literal = tiny(), tiny()
    protocol = Protocol(["ConvNet"], "none", epochs=6, lr_net=0.05)
    train_network(network, examples, protocol, 0, torch.float32)
    initialise(literal, torch.tensor([1 << 62, 0]))
    start = weights(literal)
    train_literally(literal, examples.images, examples.labels, epochs=6, lr=0.05)
    moved = (weights(literal) - start).abs().max()
    # Seven steps, of which each rounds sums of up to 12 * 144 products.
    assert (weights(network) - weights(literal)).abs().max() <= 7 * math.sqrt(12 * 144) * 2**-23 * moved * 4
    assert moved > 0.01


def test_every_epoch_shows_every_image_once(blobs: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Tensor] = []
    batch = LabelledImages.batch

    def record(self: LabelledImages, index: Tensor, tables: list[Tensor]) -> Tensor:
        shown.append(index)
        return batch(self, index, tables)

    monkeypatch.setattr(LabelledImages, "batch", record)
    protocol = Protocol(["MLP"], "none", epochs=1, batch_train=5)
    train_network(tiny("MLP"), examples_of(blobs), protocol, 0, torch.float32)
    assert [len(index) for index in shown] == [5, 5, 2] * 2
    first, second = torch.cat(shown[:3]), torch.cat(shown[3:])
    assert first.sort().values.tolist() == second.sort().values.tolist() == list(range(12))
    assert first.tolist() != second.tolist()


def test_a_batch_has_one_family_and_parameters_per_image(blobs: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    families: set[str] = set()
    columns = {
        "color": [table.BRIGHTNESS, table.SATURATION, table.CONTRAST],
        "crop": [table.SHIFT_ROWS, table.SHIFT_COLS],
        "cutout": [table.CUTOUT_TOP, table.CUTOUT_BOTTOM, table.CUTOUT_LEFT, table.CUTOUT_RIGHT],
        "flip": [table.FLIP],
        "scale": [table.SCALE_X, table.SCALE_Y],
        "rotate": [table.ROTATE_COS, table.ROTATE_SIN],
    }
    batch = LabelledImages.batch

    def record(self: LabelledImages, index: Tensor, tables: list[Tensor]) -> Tensor:
        (rows,) = tables
        changed = (rows != table.identity(len(rows))).any(0)
        used = [family for family, own in columns.items() if changed[own].any()]
        assert len(used) == 1
        assert len(rows.unique(dim=0)) > 1
        families.update(used)
        return batch(self, index, tables)

    monkeypatch.setattr(LabelledImages, "batch", record)
    protocol = Protocol(["MLP"], DSA_STRATEGY, epochs=60)
    train_network(tiny("MLP"), examples_of(blobs), protocol, 0, torch.float32)
    assert families == set(columns)


def test_accuracy_is_the_share_of_right_answers(blobs: Dataset) -> None:
    network = tiny()
    assert isinstance(network.classifier, torch.nn.Linear)
    with torch.no_grad():
        network.classifier.weight.zero_()
        network.classifier.bias.copy_(torch.tensor([0.0, 1.0, 0.0]))
    pool = blobs.train
    unequal = LabelledImages(pool.images[:25], pool.labels[:25], torch.tensor(blobs.mean), torch.tensor(blobs.std))
    assert accuracy(network, unequal, torch.float32) == 5 / 25


# --- evaluate --------------------------------------------------------------------------------------------------------


def test_networks_learn_from_sets_and_pools(blobs: Dataset) -> None:
    options = {"networks": (TINY, "MLP"), "num_eval": 2, "strategy": "crop", "device": "cpu"}
    few = evaluate(random_selection(blobs, 10), blobs, epochs=20, **options)  # type: ignore[arg-type]
    whole = evaluate(whole_set(blobs), blobs, epochs=10, batch_train=16, **options)  # type: ignore[arg-type]
    for result in (few, whole):
        assert list(result.accuracies) == [TINY, "MLP"]
        assert all(len(values) == 2 and min(values) > 0.8 for values in result.accuracies.values())
    values = few.accuracies[TINY]
    assert few.mean[TINY] == pytest.approx(np.mean(values))
    assert few.std[TINY] == pytest.approx(np.std(values))


def test_accuracies_follow_from_the_seed(blobs: Dataset) -> None:
    train = random_selection(blobs, 1)

    def run(num_eval: int, seed: int) -> list[float]:
        torch.manual_seed(num_eval)  # must not matter
        options = {"networks": (TINY,), "num_eval": num_eval, "epochs": 1, "lr_net": 1e-4, "seed": seed}
        return evaluate(train, blobs, device="cpu", **options).accuracies[TINY]  # type: ignore[arg-type]

    four = run(4, seed=0)
    assert run(4, seed=0) == four
    assert run(3, seed=0) == four[:3]
    assert run(4, seed=1) != four
    assert len(set(four)) > 1


@pytest.mark.parametrize(
    ("dataset", "settings", "networks", "families"),
    [
        ("blobs", {"network": "MLP", "strategy": "flip_crop"}, ["MLP"], "flip_crop"),
        ("blobs", {"network": "MLP", "strategy": "none"}, ["MLP"], "none"),
        ("blobs", {}, ["ConvNet"], DSA_STRATEGY),
        ("digits", {}, ["ConvNet"], "color_crop_cutout_scale_rotate"),
    ],
)
def test_the_defaults_are_how_the_set_was_condensed(
    dataset: str,
    settings: dict[str, str],
    networks: list[str],
    families: str,
    blobs: Dataset,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    used: list[str] = []

    def record(network: Network, examples: LabelledImages, protocol: Protocol, *args: object) -> None:
        used.append(str(protocol.strategy))

    monkeypatch.setattr(trial, "train_network", record)
    named = dataclasses.replace(blobs, name=dataset)
    train = dataclasses.replace(random_selection(named, 1), settings=settings)
    assert list(evaluate(train, named, num_eval=1, device="cpu").accuracies) == networks
    evaluate(train, named, networks=["MLP"], strategy="color", num_eval=1, device="cpu")
    evaluate(whole_set(named), named, num_eval=1, device="cpu")
    assert used == [families, "color", DSA_STRATEGY if dataset == "blobs" else families]


def test_deeper_networks_for_larger_images() -> None:
    large = random_dataset([2, 2], shape=(3, 64, 64))
    assert recorded_settings(large.train, large)[0] == "ConvNetD4"
    assert recorded_settings(condense(large, 1, iterations=0, network="LeNet"), large)[0] == "LeNet"


def test_evaluations_are_pooled() -> None:
    parts = [Evaluation({"A": [0.0, 0.25], "B": [1.0]}), Evaluation({"A": [0.5]})]
    pooled = Evaluation.pooled(parts)
    assert pooled.accuracies == {"A": [0.0, 0.25, 0.5], "B": [1.0]}
    assert pooled.mean["A"] == 0.25
    assert parts[0].accuracies["A"] == [0.0, 0.25]


def test_batch_norm_is_trained_jointly_and_tested_with_its_statistics(blobs: Dataset) -> None:
    train, networks = random_selection(blobs, 10), ("ConvNetBN",)
    result = evaluate(train, blobs, networks=networks, num_eval=1, epochs=15, strategy="none", device="cpu")
    assert result.mean["ConvNetBN"] > 0.8


def test_progress_is_told(blobs: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate(random_selection(blobs, 2), blobs, networks=(TINY,), num_eval=2, epochs=3, batch_train=4, progress=True)
    assert '"done": 16, "total": 16' in capsys.readouterr().out  # 2 networks, 4 epochs, 2 batches


def test_one_failure_stops_all(blobs: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> float:
        raise RuntimeError("out of luck")

    monkeypatch.setattr(trial, "classify_all", fail)
    with pytest.raises(RuntimeError, match="out of luck"):
        evaluate(random_selection(blobs, 1), blobs, networks=(TINY,), num_eval=3, epochs=1, device="cpu")


def test_what_does_not_fit_together(blobs: Dataset) -> None:
    train = random_selection(blobs, 2)
    with pytest.raises(FastDMError, match=r"data set blobs has no test part .*\(fastdm condense --num_eval 0\)$"):
        evaluate(train, dataclasses.replace(blobs, test=None))
    two = open_dataset((np.zeros((4, 8, 8), np.uint8), [0, 1, 0, 1], np.zeros((1, 8, 8), np.uint8), [0]), name="two")
    message = "the set of blobs has 3 classes of 1x8x8 images, but data set two has 2 classes of 1x8x8 images"
    with pytest.raises(FastDMError, match=message):
        evaluate(train, two)
    with pytest.raises(FastDMError, match="has 3 classes of 1x8x6 images, but data set blobs has 3 classes of 1x8x8"):
        evaluate(dataclasses.replace(train, images=train.images[..., :6]), blobs)
    for none in (train.images, (train.images, train.labels), blobs):
        with pytest.raises(FastDMError, match=f"is a {type(none).__name__}; it must be a SyntheticSet"):
            evaluate(none, blobs)  # type: ignore[arg-type]
    with pytest.raises(FastDMError, match="not finite"):
        evaluate(dataclasses.replace(train, images=train.images * math.nan), blobs)


def test_batch_norm_of_a_single_value_is_refused(blobs: Dataset) -> None:
    """The last feature maps of images of 8x8 are single pixels, and so are those of the network of one's own."""

    def own() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 3))

    for network in ("ResNet18BN", own):
        with pytest.raises(FastDMError, match="cannot be trained on a single image, which the last batch of 3 images"):
            evaluate(
                random_selection(blobs, 1), blobs, networks=[network], num_eval=1, epochs=1, batch_train=2, device=CPU
            )
    trained = evaluate(
        random_selection(blobs, 1), blobs, networks=[own], num_eval=1, epochs=1, batch_train=3, device=CPU
    )
    assert len(trained.accuracies["own"]) == 1


def test_classes_in_another_order_are_noticed(blobs: Dataset) -> None:
    named = dataclasses.replace(blobs, class_names=("left", "middle", "right"))
    turned = dataclasses.replace(blobs, class_names=("right", "middle", "left"))
    options = {"networks": [TINY], "num_eval": 1, "epochs": 1, "device": CPU}
    message = "blobs in another order: class 0 is 'left' in the set, but 'right' in the data set"
    with pytest.raises(FastDMError, match=message):
        evaluate(random_selection(named, 1), turned, **options)  # type: ignore[arg-type]
    # Numbers stand for names that are not known.
    numbers = dataclasses.replace(blobs, class_names=("2", "1", "0"))
    assert evaluate(random_selection(blobs, 1), numbers, **options).accuracies  # type: ignore[arg-type]


def test_numbers_of_numpy_are_numbers(blobs: Dataset) -> None:
    options = {"networks": [TINY], "num_eval": 1, "epochs": 1, "device": CPU}
    found, expected = (
        evaluate(random_selection(blobs, 1), blobs, lr_net=lr_net, seed=seed, **options)  # type: ignore[arg-type]
        for lr_net, seed in ((np.float32(0.5), np.int32(3)), (0.5, 3))
    )
    assert found.accuracies == expected.accuracies


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_eval": 0}, "num_eval is 0; it must be a whole number of at least 1"),
        ({"num_eval": 1.5}, "num_eval is 1.5"),
        ({"epochs": 0}, "epochs is 0"),
        ({"batch_train": -1}, "batch_train is -1"),
        ({"lr_net": 0.0}, "lr_net is 0.0; it must be above 0"),
        ({"lr_net": math.nan}, "lr_net is nan"),
        ({"seed": -1}, "seed is -1"),
        ({"networks": []}, r"networks is \[\]; it must be a list of at least one name"),
        ({"networks": "ConvNet"}, "networks is 'ConvNet'; it must be a list"),
        ({"networks": ("ConvNet", "Conv")}, "unknown network 'Conv'"),
        ({"networks": ("VGG11",)}, "VGG11 cannot take 8x8 images"),
        ({"strategy": "blur"}, "blur"),
        ({"precision": "fp8"}, "precision"),
        ({"device": "abacus"}, "device 'abacus' is unknown; it must be cpu, cuda"),
    ],
)
def test_bad_settings(blobs: Dataset, options: dict[str, object], message: str) -> None:
    with pytest.raises(FastDMError, match=message):
        evaluate(random_selection(blobs, 1), blobs, **options)  # type: ignore[arg-type]


def test_an_ipc_beyond_the_smallest_class(blobs: Dataset) -> None:
    for ipc, wanted in ((0, "a whole number of at least 1"), (21, "at least 1 and at most 20")):
        with pytest.raises(FastDMError, match=f"ipc is {ipc}; it must be {wanted}"):
            random_selection(blobs, ipc)


def test_the_place_of_an_evaluation_is_said_in_networks_and_epochs() -> None:
    """Three networks of 2 updates in each of 301 epochs, two of them side by side."""
    where = [position(done, networks=3, at_once=2, steps=602, epochs=301) for done in (1, 4, 5, 1204, 1205, 1806)]
    assert where == [
        "networks 1 to 2 of 3, epoch 1 of 301",
        "networks 1 to 2 of 3, epoch 1 of 301",
        "networks 1 to 2 of 3, epoch 2 of 301",
        "networks 1 to 2 of 3, epoch 301 of 301",
        "network 3 of 3, epoch 1 of 301",
        "network 3 of 3, epoch 301 of 301",
    ]


def test_image_files_of_several_sizes_are_brought_to_one(tmp_path: Path) -> None:
    for part in ("train", "test"):
        for label, side in enumerate((9, 12)):
            path = tmp_path / part / str(label) / "x.png"
            path.parent.mkdir(parents=True)
            Image.fromarray(np.full((side, side, 3), 200 * label, np.uint8)).save(path)
    synthetic = random_selection(open_dataset(tmp_path, image_size=8), 1)
    found = evaluate(synthetic, tmp_path, image_size=8, networks=(TINY,), num_eval=1, epochs=1, device="cpu")
    assert found.confusion[TINY][0][0] + found.confusion[TINY][0][1] == 1  # one test image of each class
