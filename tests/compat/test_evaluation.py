"""`evaluate_synset` against the public function, transcribed."""

import copy
from argparse import Namespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

from fastdm.compat import DiffAugment, ParamDiffAug, evaluate_synset
from fastdm.errors import FastDMError


def arguments(**changes: Any) -> Namespace:
    values = {
        "device": "cpu", "lr_net": 0.05, "epoch_eval_train": 4, "batch_train": 4, "dsa": True,
        "dsa_strategy": "color_crop_cutout_flip_scale_rotate", "dsa_param": ParamDiffAug(), "dc_aug_param": None,
    }  # fmt: skip
    return Namespace(**{**values, **changes})


def public(net: nn.Module, images: Tensor, labels: Tensor, testloader: Any, args: Namespace) -> tuple[float, float]:
    """(training accuracy of the last epoch, test accuracy), as the public code finds them."""
    lr = args.lr_net
    loader = DataLoader(TensorDataset(images, labels), batch_size=args.batch_train, shuffle=True)
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)
    train_accuracy = 0.0
    for epoch in range(args.epoch_eval_train + 1):
        net.train()
        right = 0
        for batch, truth in loader:
            if args.dsa:
                batch = DiffAugment(batch, args.dsa_strategy, param=args.dsa_param)
            output = net(batch)
            loss = nn.CrossEntropyLoss()(output, truth)
            right += int((output.argmax(1) == truth).sum())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        train_accuracy = right / len(images)
        if epoch == args.epoch_eval_train // 2 + 1:
            optimizer = torch.optim.SGD(net.parameters(), lr=0.1 * lr, momentum=0.9, weight_decay=5e-4)
    net.eval()
    found = [(int((net(batch).argmax(1) == truth).sum()), len(truth)) for batch, truth in testloader]
    return train_accuracy, sum(right for right, _ in found) / sum(count for _, count in found)


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    layers = (nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 64, 3))
    return nn.Sequential(*layers)


class Counted(TensorDataset):
    """Counts how often an image is read."""

    read = 0

    def __getitem__(self, index: Any) -> tuple[Tensor, ...]:
        self.read += 1
        return super().__getitem__(index)


@pytest.fixture
def data() -> tuple[Tensor, Tensor, Counted]:
    generator = torch.Generator().manual_seed(0)
    images, tests = torch.randn(10, 3, 8, 8, generator=generator), torch.randn(50, 3, 8, 8, generator=generator)
    return images, torch.arange(10) % 3, Counted(tests, torch.arange(50) % 3)


@pytest.mark.parametrize("changes", [{}, {"dsa": False}, {"dsa_strategy": "none"}], ids=["dsa", "off", "none"])
def test_two_networks_train_as_with_the_public_function(
    changes: dict[str, Any], data: tuple[Tensor, Tensor, Counted], capsys: pytest.CaptureFixture[str]
) -> None:
    images, labels, tests = data
    theirs, ours = [], []
    loader = DataLoader(tests, batch_size=16)
    args = arguments(**changes)
    first, second = network(1), network(2)
    torch.manual_seed(5)
    theirs = [public(net, images, labels, loader, args) for net in map(copy.deepcopy, (first, second))]
    after = torch.rand(1)
    tests.read = 0
    torch.manual_seed(5)
    trained = [evaluate_synset(number, net, images, labels, loader, args) for number, net in enumerate((first, second))]
    assert torch.equal(torch.rand(1), after)  # the generator is where the public function leaves it
    ours = [(train, test) for _, train, test in trained]
    assert ours == theirs
    assert trained[1][0] is second
    assert tests.read == 50  # once, not for every network
    assert "Evaluate_01: epoch = 0004 train time" in capsys.readouterr().out


def test_the_weights_are_the_public_ones(data: tuple[Tensor, Tensor, Counted]) -> None:
    images, labels, tests = data
    net = network(3)
    other = copy.deepcopy(net)
    torch.manual_seed(5)
    public(other, images, labels, DataLoader(tests, batch_size=16), arguments())
    torch.manual_seed(5)
    evaluate_synset(0, net, images, labels, DataLoader(tests, batch_size=16), arguments())
    for ours, theirs in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)  # the same operations in the same order


def test_images_without_rows_and_columns_are_vectors(data: tuple[Tensor, Tensor, Counted]) -> None:
    images, labels, tests = (each.flatten(1) if each.ndim > 1 else each for each in (*data[:2], data[2].tensors[0]))
    loader, args = DataLoader(TensorDataset(tests, data[2].tensors[1]), batch_size=16), arguments(dsa=False)
    torch.manual_seed(0)
    theirs, ours = nn.Linear(192, 3), nn.Linear(192, 3)
    ours.load_state_dict(theirs.state_dict())
    torch.manual_seed(1)
    expected = public(theirs, images, labels, loader, args)
    torch.manual_seed(1)
    assert evaluate_synset(0, ours, images, labels, loader, args)[1:] == pytest.approx(expected)


def test_any_iterable_of_batches_is_a_testloader(data: tuple[Tensor, Tensor, Counted]) -> None:
    images, labels, tests = data
    batches = [(tests.tensors[0], tests.tensors[1].to(torch.int32))]
    _, _, accuracy = evaluate_synset(0, network(1), images, labels, batches, arguments())
    assert 0 <= accuracy <= 1
    with pytest.raises(FastDMError, match="testloader gives no images"):
        evaluate_synset(0, network(1), images, labels, [], arguments())


def test_a_test_set_that_does_not_fit_is_read_batch_by_batch(
    data: tuple[Tensor, Tensor, Counted], monkeypatch: pytest.MonkeyPatch
) -> None:
    images, labels, tests = data
    loader = DataLoader(tests, batch_size=16)
    torch.manual_seed(5)
    whole = evaluate_synset(0, network(1), images, labels, loader, arguments())[2]
    monkeypatch.setattr("fastdm.compat.evaluation.free_memory", lambda _: 4 * 20 * 3 * 64 * 4)
    tests.read = 0
    for _ in range(2):
        torch.manual_seed(5)
        small = evaluate_synset(0, network(1), images, labels, DataLoader(tests, batch_size=16), arguments())[2]
        assert small == whole
    assert tests.read == 100


def test_a_builder_images_of_bytes_and_labels_beyond_the_logits_are_refused() -> None:
    images, labels = torch.zeros(2, 3, 8, 8), torch.arange(2)
    with pytest.raises(FastDMError, match=r"labels_train has the label 99, but net gives \d+ logits"):
        evaluate_synset(0, network(1), images, labels + 98, [], arguments())
    with pytest.raises(FastDMError, match=r"net is a function; it must be a torch\.nn\.Module"):
        evaluate_synset(0, network, images, labels, [], arguments())  # type: ignore[arg-type]
    with pytest.raises(FastDMError, match=r"images_train is torch\.uint8; it must be normalised images"):
        evaluate_synset(0, network(1), images.byte(), labels, [], arguments())


def test_arguments_that_are_missing_or_ask_for_another_augmentation() -> None:
    args = arguments()
    del args.lr_net
    with pytest.raises(FastDMError, match="args has no lr_net"):
        evaluate_synset(0, network(1), torch.zeros(2, 3, 8, 8), torch.zeros(2), [], args)
    plain = arguments(dsa=False, dc_aug_param={"strategy": "crop"})
    with pytest.raises(FastDMError, match="asks for the augmentation of plain DC"):
        evaluate_synset(0, network(1), torch.zeros(2, 3, 8, 8), torch.zeros(2), [], plain)


class Sizes(nn.Module):
    """Notes how many images come at a time."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 3), *layers)
        self.seen: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(len(x))
        logits: Tensor = self.layers(x)
        return logits


@pytest.mark.parametrize("layers", [(), (nn.BatchNorm1d(3),), (nn.BatchNorm1d(3, track_running_stats=False),)], ids=str)
def test_test_images_go_through_the_network_in_parts_unless_they_share_statistics(
    layers: tuple[nn.Module, ...], data: tuple[Tensor, Tensor, Counted], monkeypatch: pytest.MonkeyPatch
) -> None:
    images, labels, tests = data
    monkeypatch.setattr("fastdm.compat.parts.CACHE_BYTES", 7 * 512 * 64)
    net = Sizes(*layers)
    other = copy.deepcopy(net)
    torch.manual_seed(5)
    found = evaluate_synset(0, net, images, labels, DataLoader(tests, batch_size=20), arguments())[2]
    torch.manual_seed(5)
    assert found == public(other, images, labels, DataLoader(tests, batch_size=20), arguments())[1]
    joined = any(isinstance(layer, nn.BatchNorm1d) and not layer.track_running_stats for layer in layers)
    trained = [4, 4, 2] * 5  # as they come: what is shared while a network is trained is not ours to part
    assert net.seen == trained + ([20, 20, 10] if joined else [7, 7, 6, 7, 7, 6, 7, 3])
    assert other.seen == [*trained, 20, 20, 10]


class Centred(nn.Linear):
    """Changes its images in place."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.sub_(1).flatten(1))


def test_the_test_set_is_the_same_for_every_network(data: tuple[Tensor, Tensor, Counted]) -> None:
    images, labels, tests = data
    loader, seen = DataLoader(tests, batch_size=16), []
    for _ in range(3):
        net = Centred(192, 3)
        net.register_forward_pre_hook(lambda net, args: None if net.training else seen.append(args[0].clone()))
        evaluate_synset(0, net, images, labels, loader, arguments(dsa=False))
    assert torch.equal(torch.cat(seen), tests.tensors[0].repeat(3, 1, 1, 1))


@pytest.mark.parametrize("by_batches", [False, True])
def test_a_shuffled_test_set_is_drawn_anew_for_every_network(
    by_batches: bool, data: tuple[Tensor, Tensor, Counted]
) -> None:
    images, labels, tests = data
    batches = BatchSampler(RandomSampler(tests), 16, drop_last=False)
    loader = DataLoader(tests, batch_sampler=batches) if by_batches else DataLoader(tests, 16, shuffle=True)
    after = []
    for call in (
        lambda net: public(net, images, labels, loader, arguments()),
        lambda net: evaluate_synset(0, net, images, labels, loader, arguments())[1:],
    ):
        torch.manual_seed(5)
        after.append(([call(network(seed)) for seed in (1, 2)], torch.rand(1)))
    assert after[0] == after[1]


@pytest.mark.parametrize(
    ("labels", "changes", "message"),
    [
        (torch.arange(8), {}, r"images_train is \[10, 3, 8, 8\] and labels_train \[8\]"),
        (torch.rand(10, 3), {}, r"labels_train \[10, 3\]; they must be \[N, C, H, W\] and \[N\]"),
        ([0] * 10, {}, "labels_train is a list; it must be a tensor"),
        (torch.arange(10) % 3, {"batch_train": 0}, "args.batch_train is 0"),
        (torch.arange(10) % 3, {"epoch_eval_train": -1}, "args.epoch_eval_train is -1"),
        (torch.arange(10) % 3, {"device": "tpu"}, "tpu"),
        (torch.arange(10) % 3 - 1, {}, "labels_train must be whole numbers from 0 on"),
        (torch.arange(10) / 10, {}, "labels_train must be whole numbers from 0 on"),
    ],
)
def test_what_does_not_fit_together_is_refused_before_the_training(
    labels: Any, changes: dict[str, Any], message: str, data: tuple[Tensor, Tensor, Counted]
) -> None:
    net = network(1)
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(FastDMError, match=message):
        evaluate_synset(0, net, data[0], labels, DataLoader(data[2], 16), arguments(**changes))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
