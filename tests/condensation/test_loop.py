"""`condense`: the run around the step. That the step is right is the business of test_step."""

import dataclasses
import json
import shutil
import signal
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fastdm
from fastdm.condensation import loop
from fastdm.condensation.settings import Settings
from fastdm.condensation.step import Step
from fastdm.data.pool import Dataset, Pool
from fastdm.errors import FastDMError
from fastdm.runs.checkpoint import FILE, PREVIOUS
from fastdm.runs.options import RunOptions
from fastdm.synthetic.synthetic_set import SyntheticSet
from tests.oracles import random_dataset

SMALL: dict[str, Any] = {"ipc": 1, "iterations": 6, "batch_real": 8, "network": "ConvNetD1", "device": "cpu"}


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return random_dataset([12, 10], shape=(3, 8, 8))


def test_run_folder(dataset: Dataset, tmp_path: Path) -> None:
    seen: list[tuple[int, float]] = []
    result = fastdm.condense(
        dataset,
        **SMALL,
        save_path=tmp_path / "run",
        save_every=2,
        picture_every=3,
        callback=lambda iteration, loss, images: seen.append((iteration, loss)),
    )
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {
        "settings.json",
        "about.json",
        "log.jsonl",
        FILE,
        PREVIOUS,
        "checkpoint-00000004-0of1.safetensors",
        "checkpoint-00000006-0of1.safetensors",
        "iteration_000003.png",
        "iteration_000006.png",
        "synthetic.png",
        "synthetic.safetensors",
    }
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [(line["iteration"], line["loss"]) for line in log] == seen
    assert [iteration for iteration, _ in seen] == list(range(6))
    settings = json.loads((tmp_path / "run" / "settings.json").read_text())
    assert settings["network"] == "ConvNetD1"
    assert settings["lr_img"] == 1.0  # the preset, not None

    loaded = fastdm.SyntheticSet.load(tmp_path / "run" / "synthetic.safetensors")
    assert torch.equal(loaded.images, result.images)
    assert loaded.class_names == dataset.class_names
    assert loaded.settings == settings


def test_the_most_memory_is_known_at_the_end(dataset: Dataset, tmp_path: Path) -> None:
    def peak() -> int | None:
        found = json.loads((tmp_path / "about.json").read_text())["peak_bytes"]
        return None if found is None else int(found)

    during = []
    fastdm.condense(dataset, **SMALL, save_path=tmp_path, callback=lambda *_: during.append(peak()))
    assert during == 6 * [None]
    assert (peak() or 0) > dataset.train.images.nbytes


class Seen:
    """Looks at a set after an even number of iterations."""

    def __init__(self) -> None:
        self.images: dict[int, torch.Tensor] = {}

    def wants(self, iteration: int) -> bool:
        return iteration % 2 == 0

    def look(self, iteration: int, synthetic: SyntheticSet) -> None:
        self.images[iteration] = synthetic.images


def test_an_observer_sees_the_set_as_it_is_after_so_many_iterations(dataset: Dataset, tmp_path: Path) -> None:
    def run(iterations: int, **options: Any) -> dict[int, torch.Tensor]:
        seen, cpu = Seen(), torch.device("cpu")
        settings = Settings(ipc=1, iterations=iterations, batch_real=8, network="ConvNetD1").resolve(dataset, cpu)
        loop.condense_resolved(dataset, settings, cpu, RunOptions(observer=seen, save_path=tmp_path, **options))
        return seen.images

    first, then = run(4), run(6, resume=True)
    assert ([*first], [*then]) == ([0, 2, 4], [4, 6])
    for iteration, images in (first | then).items():
        assert torch.equal(images, fastdm.condense(dataset, **{**SMALL, "iterations": iteration}).images)


def test_resumed_equals_uninterrupted(dataset: Dataset, tmp_path: Path) -> None:
    whole = fastdm.condense(dataset, **SMALL)

    def stop(iteration: int, loss: float, images: torch.Tensor) -> None:
        if iteration == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fastdm.condense(dataset, **SMALL, save_path=tmp_path, callback=stop)
    resumed = []
    result = fastdm.condense(
        dataset, **SMALL, save_path=tmp_path, resume=True, callback=lambda iteration, *_: resumed.append(iteration)
    )
    assert resumed == [3, 4, 5]
    assert torch.equal(result.images, whole.images)
    log = [json.loads(line)["iteration"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert log == list(range(6))

    longer = fastdm.condense(dataset, **{**SMALL, "iterations": 8}, save_path=tmp_path, resume=True)
    assert torch.equal(longer.images, fastdm.condense(dataset, **{**SMALL, "iterations": 8}).images)


def test_resume_without_a_checkpoint_starts(dataset: Dataset, tmp_path: Path) -> None:
    result = fastdm.condense(dataset, **SMALL, save_path=tmp_path, resume=True)
    assert torch.equal(result.images, fastdm.condense(dataset, **SMALL).images)


def test_a_run_is_not_overwritten_unasked(dataset: Dataset, tmp_path: Path) -> None:
    fastdm.condense(dataset, **SMALL, save_path=tmp_path)
    before = (tmp_path / FILE).read_bytes()
    with pytest.raises(FastDMError, match="already holds a run: resume it, overwrite it"):
        fastdm.condense(dataset, **SMALL, seed=1, save_path=tmp_path)
    assert (tmp_path / FILE).read_bytes() == before
    fastdm.condense(dataset, **SMALL, seed=1, save_path=tmp_path, overwrite=True)
    assert (tmp_path / FILE).read_bytes() != before


@pytest.mark.parametrize("damage", ["truncated", "flipped", "emptied", "foreign"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(damage: str, dataset: Dataset, tmp_path: Path) -> None:
    fastdm.condense(dataset, **SMALL, save_path=tmp_path, save_every=3)
    content = bytearray((tmp_path / FILE).read_bytes())
    content[-5] ^= 1
    new = {"truncated": content[:-9], "flipped": content, "emptied": b"", "foreign": b"not a checkpoint at all"}[damage]
    (tmp_path / FILE).write_bytes(new)
    resumed: list[int] = []
    with pytest.warns(UserWarning, match=rf"{FILE} is damaged .* iteration 3 is resumed from .*{PREVIOUS}"):
        result = fastdm.condense(
            dataset, **SMALL, save_path=tmp_path, resume=True, callback=lambda iteration, *_: resumed.append(iteration)
        )
    assert resumed == [3, 4, 5]
    assert (tmp_path / f"{FILE}.damaged").read_bytes() == new
    assert torch.equal(result.images, fastdm.condense(dataset, **SMALL).images)


def test_nothing_is_left_to_resume_where_both_checkpoints_are_damaged(dataset: Dataset, tmp_path: Path) -> None:
    fastdm.condense(dataset, **SMALL, save_path=tmp_path, save_every=3)
    for name in (FILE, PREVIOUS):
        (tmp_path / name).write_bytes(b"nothing")
    with pytest.raises(FastDMError, match=f"{FILE} is damaged .*{PREVIOUS} is damaged .*nothing is left to resume"):
        fastdm.condense(dataset, **SMALL, save_path=tmp_path, resume=True)
    assert (tmp_path / FILE).read_bytes() == b"nothing"


@pytest.mark.parametrize("line", [b"\xff\n", b"{}\n", b"[1]\n", b"[" * 100_000 + b"\n", b'{"iteration": "0"}\n'])
def test_a_damaged_log_is_put_aside(line: bytes, dataset: Dataset, tmp_path: Path) -> None:
    fastdm.condense(dataset, **{**SMALL, "iterations": 4}, save_path=tmp_path)
    damaged = line + (tmp_path / "log.jsonl").read_bytes()
    (tmp_path / "log.jsonl").write_bytes(damaged)
    with pytest.warns(UserWarning, match=r"line 1 of .*log.jsonl is damaged; it is kept as log.jsonl.damaged"):
        fastdm.condense(dataset, **SMALL, save_path=tmp_path, resume=True)
    assert (tmp_path / "log.jsonl.damaged").read_bytes() == damaged
    log = [json.loads(line)["iteration"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert log == [4, 5]


def test_a_run_folder_belongs_to_one_run_at_a_time(dataset: Dataset, tmp_path: Path) -> None:
    def intrude(iteration: int, *_: object) -> None:
        with pytest.raises(FastDMError, match="is in use by another process; wait until it has ended"):
            fastdm.condense(dataset, **SMALL, save_path=tmp_path, overwrite=True)

    result = fastdm.condense(dataset, **SMALL, save_path=tmp_path, callback=intrude)
    assert torch.equal(result.images, fastdm.condense(dataset, **SMALL).images)
    assert not (tmp_path / ".lock").exists()
    fastdm.condense(dataset, **SMALL, save_path=tmp_path, overwrite=True)


def test_nothing_is_overwritten_by_a_word(dataset: Dataset, tmp_path: Path) -> None:
    fastdm.condense(dataset, **SMALL, save_path=tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(FastDMError, match="overwrite is 'no'; it must be one of False, True"):
        fastdm.condense(dataset, **SMALL, save_path=tmp_path, overwrite="no")
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_resume_and_overwrite_exclude_each_other(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(FastDMError, match="resume continues a run, and overwrite starts over"):
        fastdm.condense(dataset, **SMALL, save_path=tmp_path, resume=True, overwrite=True)


def test_deterministic_is_harmless_on_a_cpu(dataset: Dataset, tmp_path: Path) -> None:
    fastdm.condense(dataset, **{**SMALL, "iterations": 3}, save_path=tmp_path)
    result = fastdm.condense(dataset, **SMALL, deterministic=True, save_path=tmp_path, resume=True)
    assert torch.equal(result.images, fastdm.condense(dataset, **SMALL).images)


def test_a_signal_in_an_iteration_takes_effect_after_it(dataset: Dataset, tmp_path: Path) -> None:
    """Between the change of the velocity and that of the images no exception may come: it could not be resumed."""
    whole = fastdm.condense(dataset, **SMALL)
    change = Step.__call__

    def interrupted(self: Step, iteration: int) -> torch.Tensor:
        if iteration == 3:
            for _ in range(3):
                signal.raise_signal(signal.SIGINT)
        return change(self, iteration)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Step, "__call__", interrupted)
        with pytest.raises(KeyboardInterrupt) as stopped:
            fastdm.condense(dataset, **SMALL, save_path=tmp_path)
    assert stopped.value.__notes__ == [f"iteration 4 is saved in {tmp_path}"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    resumed: list[int] = []
    result = fastdm.condense(
        dataset, **SMALL, save_path=tmp_path, resume=True, callback=lambda iteration, *_: resumed.append(iteration)
    )
    assert resumed == [4, 5]
    assert torch.equal(result.images, whole.images)


def test_an_error_in_the_midst_of_an_iteration_leaves_the_checkpoint_before(dataset: Dataset, tmp_path: Path) -> None:
    """One class is changed already, the other not yet: resuming from that would give other images."""
    options = {**SMALL, "chunk_memory": 100 << 10, "save_every": 2}
    whole = fastdm.condense(dataset, **options)
    change, changes = Step._update, []

    def fails(self: Step, images: slice, gradient: torch.Tensor) -> None:
        changes.append(images)
        if len(changes) == 8:
            raise MemoryError
        change(self, images, gradient)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Step, "_update", fails)
        with pytest.raises(FastDMError, match="the memory that this process may use is not enough") as stopped:
            fastdm.condense(dataset, **options, save_path=tmp_path)
    assert changes == 4 * [slice(0, 1), slice(1, 2)]
    assert stopped.value.__notes__ == [f"iteration 2 is saved in {tmp_path}"]
    assert torch.equal(fastdm.condense(dataset, **options, save_path=tmp_path, resume=True).images, whole.images)


def test_a_mistake_in_a_callback_costs_no_iteration(dataset: Dataset, tmp_path: Path) -> None:
    def mistaken(iteration: int, *_: object) -> None:
        if iteration == 3:
            fastdm.open_dataset("no such data set")

    with pytest.raises(FastDMError, match="no such data set") as stopped:
        fastdm.condense(dataset, **SMALL, save_path=tmp_path, callback=mistaken)
    assert stopped.value.__notes__ == [f"iteration 4 is saved in {tmp_path}"]
    resumed = fastdm.condense(dataset, **SMALL, save_path=tmp_path, resume=True)
    assert torch.equal(resumed.images, fastdm.condense(dataset, **SMALL).images)


def test_a_stop_before_the_first_iteration_promises_nothing(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "prepare", lambda *_: signal.raise_signal(signal.SIGINT))
        with pytest.raises(KeyboardInterrupt) as stopped:
            fastdm.condense(dataset, **SMALL, save_path=tmp_path)
    assert not hasattr(stopped.value, "__notes__")
    assert not (tmp_path / FILE).exists()
    fastdm.condense(dataset, **SMALL, save_path=tmp_path)  # what is there is not a run


def test_a_home_folder_is_expanded(dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    fastdm.condense(dataset, **SMALL, save_path="~/run").save("~/set.pt")
    assert {path.name for path in tmp_path.iterdir()} == {"run", "set.pt"}


def test_resume_with_other_settings_names_them(dataset: Dataset, tmp_path: Path) -> None:
    fastdm.condense(dataset, **SMALL, save_path=tmp_path)
    with pytest.raises(FastDMError, match=r"batch_real was 8 and is 4\); resume with the same ones"):
        fastdm.condense(dataset, **{**SMALL, "batch_real": 4}, save_path=tmp_path, resume=True)
    with pytest.raises(FastDMError, match=r"objective was 'mean' and is 'mmd'; clamp was False and is True\)"):
        fastdm.condense(dataset, **SMALL, objective="mmd", clamp=True, lr_img=1, save_path=tmp_path, resume=True)


def test_resume_refuses_other_pixels_and_fewer_iterations(dataset: Dataset, tmp_path: Path) -> None:
    fastdm.condense(dataset, **SMALL, save_path=tmp_path)
    inverted = dataclasses.replace(dataset, train=Pool(255 - dataset.train.images, dataset.train.class_offsets))
    with pytest.raises(FastDMError, match="some_pixels_crc32 was"):
        fastdm.condense(inverted, **SMALL, save_path=tmp_path, resume=True)
    moved = dataclasses.replace(dataset, train=Pool(dataset.train.images, torch.tensor([0, 11, 22])))
    with pytest.raises(FastDMError, match="class_sizes_crc32 was"):
        fastdm.condense(moved, **SMALL, save_path=tmp_path, resume=True)
    with pytest.raises(FastDMError, match="dataset was 'random' and is 'another'"):
        fastdm.condense(dataclasses.replace(dataset, name="another"), **SMALL, save_path=tmp_path, resume=True)
    with pytest.raises(FastDMError, match="has done 6 iterations already, more than 5; resume it with at least"):
        fastdm.condense(dataset, **{**SMALL, "iterations": 5}, save_path=tmp_path, resume=True)


def test_resume_refuses_a_data_set_with_one_other_image(tmp_path: Path) -> None:
    """One of those whose pixels are not compared, as from 64 images on."""
    images = random_dataset([100, 100], shape=(1, 8, 8)).train.images.numpy()
    labels = np.arange(200) // 100
    fastdm.condense((images, labels), **SMALL, save_path=tmp_path)
    changed = np.concatenate([images[:1], images[1:2] // 2, images[2:]])
    with pytest.raises(FastDMError, match=r"mean was \[0\.\d+\] and is \[0\.\d+\]; std was"):
        fastdm.condense((changed, labels), **SMALL, save_path=tmp_path, resume=True)


def test_a_log_that_is_ahead_of_the_checkpoint_is_cut(dataset: Dataset, tmp_path: Path) -> None:
    """What a killed run leaves: lines of iterations that the checkpoint does not have, the last one cut short."""
    fastdm.condense(dataset, **{**SMALL, "iterations": 4}, save_path=tmp_path)
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write('{"iteration": 4, "loss": 1.0, "seconds": 1.0}\n{"iteration": 5, "lo')
    fastdm.condense(dataset, **SMALL, save_path=tmp_path, resume=True)
    log = [json.loads(line)["iteration"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert log == list(range(6))


def test_overwriting_removes_the_run_before_and_nothing_else(dataset: Dataset, tmp_path: Path) -> None:
    fastdm.condense(dataset, **SMALL, save_path=tmp_path, picture_every=1, save_every=1)
    (tmp_path / "notes.txt").write_text("mine")
    fastdm.condense(dataset, **{**SMALL, "iterations": 2}, save_path=tmp_path, overwrite=True)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {
        "settings.json",
        "about.json",
        "log.jsonl",
        FILE,
        "checkpoint-00000002-0of1.safetensors",
        "synthetic.png",
        "synthetic.safetensors",
        "notes.txt",
    }


def test_a_finished_set_is_a_run(dataset: Dataset, tmp_path: Path) -> None:
    fastdm.condense(dataset, **SMALL, save_path=tmp_path)
    for name in (FILE, PREVIOUS):
        (tmp_path / name).unlink(missing_ok=True)
    with pytest.raises(FastDMError, match="already holds a run"):
        fastdm.condense(dataset, **SMALL, save_path=tmp_path)


def test_a_disk_that_fills_up_is_a_sentence(dataset: Dataset, tmp_path: Path) -> None:
    """A run folder that is gone when the checkpoint is due, as a stand-in for every error of a disk."""

    def remove(iteration: int, *_: object) -> None:
        if iteration == 2:
            shutil.rmtree(tmp_path / "run")

    with pytest.raises(FastDMError, match=r"can no longer be written .* free some space and resume"):
        fastdm.condense(dataset, **SMALL, save_path=tmp_path / "run", save_every=4, callback=remove)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_checkpoint(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "normalised", lambda dataset: {})
    fastdm.condense(dataset, **SMALL, save_path=tmp_path)
    before = (tmp_path / FILE).read_bytes()
    broken = dataclasses.replace(dataset, mean=(3e38,) * 3, std=(1e-5,) * 3)  # real images beyond float32
    with pytest.raises(
        FastDMError,
        match=r"nan at iteration 6 \(class 'class 0'\): a smaller lr_img .* checkpoint of iteration 6 is kept in",
    ):
        fastdm.condense(broken, **{**SMALL, "iterations": 9}, save_path=tmp_path, resume=True)
    assert (tmp_path / FILE).read_bytes() == before


def test_pixels_that_are_not_finite_are_no_result(dataset: Dataset) -> None:
    with pytest.raises(FastDMError, match="left pixels of class 'class 0' that are not finite: a smaller lr_img"):
        fastdm.condense(dataset, **{**SMALL, "iterations": 1}, lr_img=1e38)


def test_init(dataset: Dataset) -> None:
    """Real images start as (x / 255 - mean) / std of images of their class; noise is standard normal."""
    real = fastdm.condense(dataset, **{**SMALL, "ipc": 3, "iterations": 0})
    for c in range(2):
        start, stop = dataset.train.class_offsets[c : c + 2].tolist()
        pool = (dataset.train.images[start:stop] / 255 - 0.5) / 0.25
        distance = torch.cdist(real.images[3 * c : 3 * c + 3].flatten(1), pool.flatten(1))
        nearest = distance.min(1)
        assert nearest.values.max() < 1e-3
        assert len(nearest.indices.unique()) == 3
    noise = fastdm.condense(dataset, **{**SMALL, "ipc": 100, "iterations": 0}, init="noise")
    assert noise.images.mean().abs() < 5 / noise.images.numel() ** 0.5
    assert abs(noise.images.std().item() - 1) < 5 / (2 * noise.images.numel()) ** 0.5
    clamped = fastdm.condense(dataset, **{**SMALL, "ipc": 100, "iterations": 0}, init="noise", clamp=True)
    assert torch.equal(clamped.images, noise.images.clamp(-0.5 / 0.25, 0.5 / 0.25))


def empty_class() -> Dataset:
    data = random_dataset([4, 4], shape=(3, 8, 8))
    return dataclasses.replace(data, train=Pool(data.train.images, torch.tensor([0, 8, 8])))


def test_a_class_smaller_than_its_batch_is_said(dataset: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    fastdm.condense(dataset, **{**SMALL, "batch_real": 11}, progress=True)
    assert "less than batch_real = 11 images use all; one has 10" in capsys.readouterr().out
    fastdm.condense(dataset, **SMALL, progress=True)
    assert "use all" not in capsys.readouterr().out


def test_a_class_without_images() -> None:
    with pytest.raises(FastDMError, match="class 'class 1' of random has no images"):
        fastdm.condense(empty_class(), **SMALL)


def test_a_folder_that_cannot_be_written(dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FastDMError, match=r"the folder .* cannot be written"):
        fastdm.condense(dataset, **SMALL, save_path=tmp_path / "file" / "run")


def test_no_space(dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", ["total", "used", "free"])
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(100, 99, 1))
    with pytest.raises(FastDMError, match=r"has 1 byte left, but the run writes 1\d KiB; free some space"):
        fastdm.condense(dataset, **SMALL, save_path=tmp_path)


def test_what_a_run_replaces_makes_room_for_it(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a run that just fitted could not be resumed."""
    fastdm.condense(dataset, **SMALL, save_path=tmp_path, save_every=3)
    usage = namedtuple("usage", ["total", "used", "free"])
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(100, 99, 6 << 10))
    fastdm.condense(dataset, **{**SMALL, "iterations": 8}, save_path=tmp_path, resume=True)
