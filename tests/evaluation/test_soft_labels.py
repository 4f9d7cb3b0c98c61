"""Labels by a teacher: their values, their file, and what is trained for."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

import fastdm
from fastdm.data.pool import Dataset, Pool
from fastdm.errors import FastDMError
from fastdm.evaluation import measure as measure_room
from fastdm.evaluation.outcome import Evaluation
from fastdm.evaluation.soft_labels import relabel
from fastdm.networks.trained import NetworkPool, load_parameters
from fastdm.synthetic.synthetic_set import SyntheticSet


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return fastdm.open_dataset("digits")


@pytest.fixture(scope="module")
def pool(digits: Dataset) -> NetworkPool:
    return fastdm.train_pool(digits, networks=2, epochs=2, states=2, network="ConvNetD1", device="cpu")


def test_labels_are_the_mean_of_the_last_states(digits: Dataset, pool: NetworkPool, tmp_path: Path) -> None:
    labelled = relabel(fastdm.random_selection(digits, 2, partition=2), pool)
    expected = torch.zeros(80, 10)
    network = pool.build()
    for row in pool.weights:
        load_parameters(network, row[-1])
        expected += network(labelled.expand().images).softmax(1) / 2
    assert labelled.soft_labels is not None
    torch.testing.assert_close(labelled.soft_labels.float(), expected, rtol=2**-10, atol=1e-6)  # float16
    labelled.save(tmp_path / "set.safetensors")
    loaded = SyntheticSet.load(tmp_path / "set.safetensors")
    assert loaded.soft_labels is not None
    assert torch.equal(loaded.soft_labels, labelled.soft_labels)
    assert loaded.summary()["soft_labels"] is True


def test_a_teacher_with_batch_norm_sees_images_of_all_classes_at_once() -> None:
    # Dark and bright images: in a batch of one class alone, none is darker than the others.
    noise = torch.randint(0, 100, (512, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    bright = torch.tensor([0, 150], dtype=torch.uint8).repeat_interleave(256)
    real = Pool(noise + bright[:, None, None, None], torch.tensor([0, 256, 512]))
    dataset = Dataset("shades", real, real, ("dark", "bright"), (0.5,) * 3, (0.3,) * 3)
    pool = fastdm.train_pool(dataset, networks=1, epochs=2, network="ConvNet-d1-w8-relu-batch-avg", device="cpu")
    labelled = relabel(fastdm.random_selection(dataset, 256), pool)
    assert labelled.soft_labels is not None
    assert (labelled.soft_labels.argmax(1) == labelled.labels).double().mean() > 0.95


def test_labels_are_of_float32_whatever_pytorch_is_set_to(
    digits: Dataset, pool: NetworkPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    conv: Any = torch.backends.mkldnn.conv  # type: ignore[attr-defined]
    while_computing, before = [], conv.fp32_precision
    monkeypatch.setattr(
        "fastdm.evaluation.soft_labels.load_parameters",
        lambda *arguments: while_computing.append(conv.fp32_precision) or load_parameters(*arguments),
    )
    try:
        conv.fp32_precision = "bf16"
        relabel(fastdm.random_selection(digits, 1), pool)
        assert while_computing == ["ieee", "ieee"]
        assert conv.fp32_precision == "bf16"
    finally:
        conv.fp32_precision = before


def test_soft_labels_are_trained_for_and_random_images_measured_too(digits: Dataset, pool: NetworkPool) -> None:
    chosen = fastdm.random_selection(digits, 3, seed=4)
    options = {"num_eval": 1, "epochs": 15, "networks": ["ConvNetD1"], "device": "cpu"}
    soft = fastdm.evaluate(chosen, digits, labels="soft", pool=pool, **options)  # type: ignore[arg-type]
    again = fastdm.evaluate(relabel(chosen, pool), digits, labels="soft", pool=pool, **options)  # type: ignore[arg-type]
    hard = fastdm.evaluate(chosen, digits, **options)  # type: ignore[arg-type]
    assert soft.accuracies == again.accuracies != hard.accuracies
    assert soft.random is not None
    assert hard.random is None
    other = fastdm.random_selection(digits, 3, seed=0)
    alone = fastdm.evaluate(other, digits, labels="soft", pool=pool, **options)  # type: ignore[arg-type]
    assert soft.random.accuracies == alone.accuracies


def test_a_teacher_is_shown_images_as_its_data_set_normalises_them(
    digits: Dataset, pool: NetworkPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Float32 rounds a pixel four times on its way; soft labels are float16."""
    chosen = fastdm.random_selection(digits, 2)
    expected = relabel(chosen, pool).soft_labels
    raw = chosen.images * digits.std[0] + digits.mean[0]
    trained_for: list[SyntheticSet] = []
    monkeypatch.setattr(measure_room, "measure", lambda each, *_, **__: trained_for.append(each) or Evaluation({}))
    fastdm.evaluate(
        dataclasses.replace(chosen, images=raw, mean=(0.0,), std=(1.0,)), digits, labels="soft", pool=pool, device="cpu"
    )
    found = trained_for[0]
    assert (found.mean, found.std) == ((0.0,), (1.0,))
    assert torch.equal(found.images, raw)
    assert found.soft_labels is not None
    torch.testing.assert_close(found.soft_labels, expected, rtol=2**-9, atol=1e-5)


def test_a_pool_of_another_data_set_is_named(
    digits: Dataset, pool: NetworkPool, caplog: pytest.LogCaptureFixture
) -> None:
    chosen, options = fastdm.random_selection(digits, 1), {"num_eval": 1, "epochs": 1, "device": "cpu"}
    fastdm.evaluate(chosen, digits, labels="soft", pool=pool, networks=["ConvNetD1"], **options)  # type: ignore[arg-type]
    assert not caplog.records
    other = dataclasses.replace(digits, name="other")
    fastdm.evaluate(chosen, other, labels="soft", pool=pool, networks=["ConvNetD1"], **options)  # type: ignore[arg-type]
    assert "the networks of the pool were trained on digits, not on other" in caplog.text


def test_what_cannot_be_labelled_is_refused(digits: Dataset, pool: NetworkPool) -> None:
    chosen = fastdm.random_selection(digits, 1)
    with pytest.raises(FastDMError, match="a pool of networks is given, but labels is 'hard'"):
        fastdm.evaluate(chosen, digits, pool=pool, device="cpu")
    with pytest.raises(FastDMError, match="pool is a int; it must be a NetworkPool"):
        fastdm.evaluate(chosen, digits, labels="soft", pool=3, device="cpu")  # type: ignore[arg-type]
    with pytest.raises(FastDMError, match="absent is not a pool of trained networks"):
        fastdm.evaluate(chosen, digits, labels="soft", pool="absent", device="cpu")
    with pytest.raises(FastDMError, match="train one"):
        fastdm.evaluate(chosen, digits, labels="soft", device="cpu")
    with pytest.raises(FastDMError, match="is for condensed sets"):
        fastdm.evaluate(fastdm.whole_set(digits), digits, labels="soft", pool=pool, device="cpu")
    with pytest.raises(FastDMError, match=r"soft labels must be float16 \[10, 10\]"):
        SyntheticSet(
            chosen.images, chosen.class_names, chosen.mean, chosen.std, "digits", soft_labels=torch.ones(10, 10)
        )
