"""Every file that fastdm reads, with a bit of each byte flipped and cut at each length: what it said, or a sentence."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer

import fastdm
from fastdm.applications.pool import _Files
from fastdm.applications.report.reading import read_run
from fastdm.applications.run_summary import summarise_run
from fastdm.cli import app
from fastdm.data import open_dataset
from fastdm.data.packed.format import PackedFile
from fastdm.errors import FastDMError
from fastdm.networks.trained import NetworkPool, unread_pool
from fastdm.runs.checkpoint import FILE, SHARDS, Checkpoint, read_checkpoint, save_checkpoint
from fastdm.runs.log import cut_log
from fastdm.synthetic.synthetic_set import SyntheticSet

IMAGES = torch.arange(8.0).view(2, 1, 2, 2)
LABELS = torch.tensor([0, 1])
SET = SyntheticSet(IMAGES, ("ape", "bee"), (0.5,), (0.2,), "zoo", {"network": "ConvNet"})
PIXELS = np.arange(32, dtype=np.uint8).reshape(8, 1, 2, 2)
DATA = (PIXELS, [0, 1] * 4, PIXELS, [0, 1] * 4)


def damages(content: bytes) -> Iterator[bytes]:
    """The content with one bit of each byte flipped, then cut at each length."""
    bits = random.Random(0)
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 1 << bits.randrange(8)
        yield bytes(damaged)
    for length in range(len(content)):
        yield content[:length]


def unless_refused(read: Callable[[], Any]) -> Any:
    """What `read` returns; None if it raises a sentence."""
    try:
        return read()
    except (FastDMError, typer.BadParameter) as error:
        sentence = str(error)
    assert "\n" not in sentence
    return None


def check(path: Path, read: Callable[[], Any]) -> int:
    """Read the file under every damage: what it said, or a sentence. Returns how often it was a sentence."""
    whole, expected, refused = path.read_bytes(), read(), 0
    for damaged in damages(whole):
        path.write_bytes(damaged)
        found = unless_refused(read)
        assert found in (expected, None)
        refused += found is None
    path.write_bytes(whole)
    return refused


def raw_bytes(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().numpy().tobytes()


def of_set(synthetic: SyntheticSet) -> tuple[Any, ...]:
    return synthetic.summary(), raw_bytes(synthetic.images)


def of_data(source: Any) -> tuple[Any, ...]:
    dataset = open_dataset(source)
    return dataset.class_names, raw_bytes(dataset.train.images), dataset.test and raw_bytes(dataset.test.images)


@pytest.mark.parametrize("name", ["a.safetensors", "a.pt"])
def test_a_condensed_set(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    SET.save(path)
    size = path.stat().st_size
    refused = check(path, lambda: of_set(SyntheticSet.load(path)))
    # A zip archive has dates and other fields that nobody reads.
    assert refused == 2 * size if path.suffix == ".safetensors" else refused > size


@pytest.mark.parametrize("layout", ["dm", "mtt", "idc"])
def test_the_public_code_s_files(layout: str, tmp_path: Path) -> None:
    """They have the CRC-32 of their zip archive, at which torch.load does not look."""
    dataset, path = open_dataset(DATA), tmp_path / "images_best.pt"
    if layout == "idc":
        torch.save([IMAGES / 8, LABELS], path)
    elif layout == "dm":
        torch.save({"data": [[IMAGES, LABELS]], "accs_all_exps": {"ConvNet": [0.5]}}, path)
    else:
        torch.save(IMAGES, path)
        torch.save(LABELS, tmp_path / "labels_best.pt")
    size = path.stat().st_size
    assert check(path, lambda: of_set(SyntheticSet.load(path, dataset=dataset))) > size


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_file_of_an_old_torch_has_no_checksum_but_gives_a_set_or_a_sentence(tmp_path: Path) -> None:
    dataset, path = open_dataset(DATA), tmp_path / "data.pt"
    torch.save([IMAGES / 8, LABELS], path, _use_new_zipfile_serialization=False)
    for damaged in damages(path.read_bytes()):
        path.write_bytes(damaged)
        found = unless_refused(lambda: SyntheticSet.load(path, dataset=dataset))
        assert found is None or (found.images.shape == IMAGES.shape and found.images.isfinite().all())


def test_an_archive_without_checksums_is_read(tmp_path: Path) -> None:
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save([IMAGES / 8, LABELS], tmp_path / "data.pt")
    finally:
        torch.serialization.set_crc32_options(before)
    assert len(SyntheticSet.load(tmp_path / "data.pt", dataset=open_dataset(DATA))) == 2


@pytest.mark.parametrize("name", ["a.npz", "a.pt", "a.fastdm"])
def test_a_data_set(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if path.suffix == ".npz":  # without a test part: a zip's list of members can lose its end
        np.savez_compressed(path, x_train=PIXELS, y_train=DATA[1])
    elif path.suffix == ".pt":
        torch.save(tuple(map(torch.as_tensor, DATA)), path)
    else:
        fastdm.pack(DATA, path)

    def read() -> tuple[Any, ...]:
        if path.suffix == ".fastdm":
            PackedFile(path).verify()
        return of_data(path)

    size = path.stat().st_size
    assert check(path, read) > size


@pytest.mark.parametrize("which", [FILE, SHARDS])
def test_a_checkpoint(which: str, tmp_path: Path) -> None:
    save_checkpoint(tmp_path, Checkpoint(7, {"a": IMAGES}, '{"ipc": 1}'))
    (path,) = tmp_path.glob(which)

    def read() -> tuple[Any, ...]:
        found = read_checkpoint(tmp_path / FILE)
        return found.iteration, found.settings, found.tensors.keys(), raw_bytes(found.tensors["a"])

    assert check(path, read) > path.stat().st_size


def test_a_pool_of_networks_and_an_interrupted_training_of_one(tmp_path: Path) -> None:
    name = "ConvNet-d1-w1-relu-instance-avg"
    weights = torch.rand(1, 2, unread_pool(name, (1, 2, 2), 2, 1, 2).weights.shape[2])
    NetworkPool(weights, name, (1, 2, 2), 2, "zoo", (0.5,), {"seed": 3}).save(tmp_path / "pool.safetensors")

    def read() -> tuple[Any, ...]:
        pool = NetworkPool.load(tmp_path / "pool.safetensors")
        return pool.summary(), raw_bytes(pool.weights)

    path = tmp_path / "pool.safetensors"
    assert check(path, read) == 2 * path.stat().st_size

    files = _Files(path, {"networks": 1})
    files.save(0, 12, weights[0], weights[0, 0].clone())

    def read_part() -> tuple[Any, ...]:
        found = files.load(0)
        assert found is not None
        return found[0], raw_bytes(found[1]), raw_bytes(found[2])

    part = tmp_path / "pool-network-0.safetensors"
    assert check(part, read_part) == 2 * part.stat().st_size


# --- files that have no checksum -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    options = {"ipc": 1, "iterations": 2, "batch_real": 2, "network": "ConvNetD1", "device": "cpu"}
    fastdm.condense(DATA, save_path=folder, **options)
    accuracies = '{"accuracies": {"ConvNetD1": [0.5]}'
    (folder / "evaluation.json").write_text(accuracies + ', "protocol": {"num_eval": 1, "epochs": 2}}')
    (folder / "evaluations.jsonl").write_text(accuracies + ', "iteration": 1}\n')
    return folder


@pytest.mark.parametrize("name", ["log.jsonl", "settings.json", "about.json", "evaluation.json", "evaluations.jsonl"])
def test_what_people_read_too_gives_a_record_or_a_sentence(name: str, run: Path) -> None:
    path = run / name
    whole = path.read_bytes()
    nonsense = (b"\xff", b"{}", b"[]", b"3", b"null", b"[" * 100_000, b'{"a": ' + b"9" * 5000 + b"}", b'"x"', b"NaN")
    for damaged in (*damages(whole), *nonsense):
        path.write_bytes(damaged)
        unless_refused(lambda: summarise_run(run))
        record = unless_refused(lambda: read_run(run))
        assert record is None or (record.ipc, len(record.class_names)) == (1, 2)
        if path.name.endswith(".jsonl"):
            cut_log(path, 2, lambda note: None)
    path.write_bytes(whole)


def test_a_file_of_flags_gives_flags_or_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("dataset: digits\nipc: 1\nlr_img: 0.5\nresume: false\nsave_path: '~/résultats'\n")
    command = typer.main.get_command(app).commands["condense"]  # type: ignore[attr-defined]
    assert command.make_context("condense", ["--config", str(path)]).params["lr_img"] == 0.5
    for damaged in damages(path.read_bytes()):
        path.write_bytes(damaged)
        context = unless_refused(lambda: command.make_context("condense", ["--config", str(path)]))
        assert context is None or isinstance(context.params["ipc"], int)
