"""What is counted in the pass over the test images, and how it is kept."""

import json
import math

import pytest
import torch
from torch import Tensor, nn

from fastdm.evaluation.outcome import Evaluation
from fastdm.evaluation.testing import classify, classify_all
from fastdm.evaluation.training import LabelledImages
from fastdm.networks.architectures import build_network


class Table(nn.Module):
    """Gives for image number i, whose one pixel is i, the row i of a table."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, images: Tensor) -> Tensor:
        return self.logits[images[:, 0, 0, 0].long()]


def numbered(labels: Tensor) -> LabelledImages:
    images = torch.arange(len(labels), dtype=torch.float32).view(-1, 1, 1, 1)
    return LabelledImages(images, labels, None, None)


def test_confusion_and_top5_are_counted_literally() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(300, 8, generator=generator), torch.randint(0, 8, (300,), generator=generator)
    found = classify(Table(logits), numbered(labels), torch.float32)
    expected = [[0] * 8 for _ in range(8)]
    among = 0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        ranked = sorted(range(8), key=lambda each: -row[each])
        expected[label][ranked[0]] += 1
        among += label in ranked[:5]
    assert found.confusion.tolist() == expected
    assert found.top5 == among / 300
    assert found.accuracy == sum(expected[label][label] for label in range(8)) / 300


def test_fewer_than_five_classes_are_all_among_the_first() -> None:
    assert classify(Table(torch.eye(3)), numbered(torch.tensor([2, 1, 0])), torch.float32).top5 == 1


def test_several_networks_share_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(1)
    tables = [Table(torch.randn(100, 6, generator=generator)) for _ in range(3)]
    examples = numbered(torch.arange(100) % 6)
    alone = [classify(table, examples, torch.float32) for table in tables]
    rows: list[int] = []
    batch = LabelledImages.batch
    monkeypatch.setattr(LabelledImages, "batch", lambda self, index: rows.extend(index.tolist()) or batch(self, index))
    for found, expected in zip(classify_all(tables, examples, torch.float32), alone, strict=True):
        assert torch.equal(found.confusion, expected.confusion)
        assert found.top5 == expected.top5
    assert rows == list(range(100))


EVALUATION = Evaluation(
    {"A": [0.25, 0.75]},
    {"A": [0.5, 0.75]},
    top5={"A": [1.0, 1.0]},
    confusion={"A": [[2, 1, 0], [1, 4, 0], [0, 0, 0]]},
)


def test_classes_have_accuracies_of_their_own() -> None:
    first, second, third = EVALUATION.per_class["A"]
    assert (first, second) == (2 / 3, 4 / 5)
    assert math.isnan(third)


def test_a_summary_is_json_and_gives_the_evaluation_back() -> None:
    text = json.dumps(EVALUATION.summary(), allow_nan=False)
    assert json.loads(text)["per_class"]["A"][2] is None
    assert Evaluation.from_json(json.loads(text)) == EVALUATION


def test_an_evaluation_of_an_earlier_version_has_accuracies_alone() -> None:
    assert Evaluation.from_json({"accuracies": {"A": [0.5], "B": []}}) == Evaluation({"A": [0.5]})
    with pytest.raises(ValueError, match="could not convert"):
        Evaluation.from_json({"accuracies": {"A": ["x"]}})


def test_pooling_adds_the_images_up() -> None:
    pooled = Evaluation.pooled([EVALUATION, EVALUATION])
    assert pooled.confusion == {"A": [[4, 2, 0], [2, 8, 0], [0, 0, 0]]}
    assert pooled.top5 == {"A": [1.0] * 4}
    assert EVALUATION.confusion["A"][0] == [2, 1, 0]


def test_batch_norm_without_running_statistics_takes_those_of_all_classes() -> None:
    network = build_network("ConvNet-d1-w128-relu-batch-avg", channels=3, num_classes=2, image_size=32, affine=False)
    with torch.no_grad():  # the brighter, the less of class 0
        network.features[0].weight.fill_(1 / 27)
        network.classifier.weight.copy_(torch.tensor([[-1.0], [1.0]]).expand(2, network.num_features))
        network.classifier.bias.copy_(torch.tensor([0.4, -0.4]) * network.num_features)
    labels = torch.arange(2).repeat_interleave(40)
    images = torch.randn(80, 3, 32, 32, generator=torch.Generator().manual_seed(0)) / 2
    examples = LabelledImages(images + 2 * labels[:, None, None, None] - 1, labels, None, None)
    assert classify(network, examples, torch.float32).accuracy == 1
