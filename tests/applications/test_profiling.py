"""The profile of a run: what it counts and what it says."""

import json
from pathlib import Path

import pytest
import torch

import fastdm
from fastdm.applications.profiling import Profile, profile
from fastdm.condensation.loop import condense
from fastdm.condensation.settings import Settings
from fastdm.data.batches import StreamedImages
from fastdm.data.packed.reading import open_packed
from fastdm.errors import FastDMError
from tests.oracles import random_dataset
from tests.ranks import said, start, wait

CPU = torch.device("cpu")
DIGITS = Settings(ipc=1, batch_real=8, network="ConvNetD1", precision="fp32")
SETTINGS = Settings(ipc=1, batch_real=8, network="ConvNetW32", precision="fp32")


def test_a_profile_accounts_for_the_time_and_names_its_files(tmp_path: Path) -> None:
    result = profile(random_dataset([16, 16]), SETTINGS, CPU, tmp_path, iterations=2)
    assert result.seconds > 0
    assert not result.graph
    assert result.device_seconds == 0
    assert {"convolution", "augmentation", "random draws", "all else"} <= result.split.keys()
    assert list(result.split.values()) == sorted(result.split.values(), reverse=True)
    assert len(result.ops) == 10
    assert [seconds for _, seconds, _ in result.ops] == sorted((op[1] for op in result.ops), reverse=True)
    assert sum(seconds for _, seconds, _ in result.ops) <= sum(result.split.values()) * (1 + 1e-9)
    assert result.launches == 0
    trace, written = (json.loads(Path(file).read_text()) for file in result.files)
    assert any(event.get("name") == "fastdm::dsa" for event in trace["traceEvents"])
    assert written["verdict"] == result.verdict()


def test_chosen_iterations_of_a_run_are_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = random_dataset([16, 16])
    options = {"ipc": 1, "batch_real": 8, "network": "ConvNetW32", "device": "cpu", "iterations": 5}
    plain = condense(dataset, **options)
    recorded = condense(dataset, **options, save_path=tmp_path, profile=range(2, 4), progress=True)
    assert torch.equal(recorded.images, plain.images)
    trace = json.loads((tmp_path / "profile" / "trace.json").read_text())
    assert sum(event.get("name") == "fastdm::draw_tables" for event in trace["traceEvents"]) == 2
    said = [json.loads(line).get("note", "") for line in capsys.readouterr().out.splitlines()]
    assert sum(" calls of " in note for note in said) == 10


@pytest.mark.parametrize("chosen", [range(4, 6), range(3, 3), range(0, 4, 2)], ids=str)
def test_iterations_that_a_run_does_not_have_are_refused(chosen: range, tmp_path: Path) -> None:
    with pytest.raises(FastDMError, match="within the run's iterations"):
        condense(random_dataset([16, 16]), ipc=1, batch_real=8, iterations=5, save_path=tmp_path, profile=chosen)
    with pytest.raises(FastDMError, match="save_path"):
        condense(random_dataset([16, 16]), ipc=1, batch_real=8, iterations=5, profile=range(2))


def test_no_iterations_cannot_be_profiled(tmp_path: Path) -> None:
    with pytest.raises(FastDMError, match="iterations is 0"):
        profile(random_dataset([16, 16]), SETTINGS, CPU, tmp_path, iterations=0)


def test_a_gpu_that_lets_nobody_profile_is_said_to(tmp_path: Path) -> None:
    split, ops = {"all else": 0.0}, (("aten::cudnn_convolution", 0.0, 6.0),)
    text = Profile("cuda:0", True, 0.25, 0.0, split, ops, 0.0, 0, ()).verdict()
    assert "takes 250.00 ms" in text
    assert "no times of kernels" in text
    assert "bound" not in text


@pytest.mark.parametrize(("busy", "bound"), [(0.95, "device-bound"), (0.4, "host-bound")])
def test_the_verdict_on_a_gpu(busy: float, bound: str) -> None:
    split = {"convolution": 0.6 * busy, "all else": 0.4 * busy}
    ops = (("aten::cudnn_convolution", 0.5 * busy, 6.0),)
    text = Profile("cuda:0", True, 1.0, busy, split, ops, 130.0, 0, ()).verdict()
    assert bound in text
    assert f"works {100 * busy:.0f} % of an iteration's 1000.00 ms" in text
    assert "as one CUDA graph" in text
    assert "130 kernels are launched per iteration" in text
    assert "60 % convolution, 40 % all else" in text
    assert "aten::cudnn_convolution, 50 %" in text


def test_the_share_of_waiting_for_data_is_said() -> None:
    text = Profile("cpu", False, 2.0, 0.0, {"all else": 1.5}, (("op", 1.5, 1.0),), 0.0, 0, (), 0.5).verdict()
    assert "It waits for real images during 25.0 % of an iteration." in text


def profile_digits(folder: Path) -> None:
    profile(open_packed(folder / "digits.fastdm"), DIGITS, CPU, folder / "profile", iterations=2)


@pytest.mark.parametrize("ranks", [1, 2])
def test_ranks_profile_their_classes_and_one_of_them_writes(ranks: int, tmp_path: Path) -> None:
    fastdm.pack("digits", tmp_path / "digits.fastdm")
    assert wait(start(ranks, profile_digits, tmp_path, folder=tmp_path)) == [0] * ranks, said(tmp_path)
    found = json.loads((tmp_path / "profile" / "profile.json").read_text())
    assert found["ranks"] == ranks
    assert 0 <= found["waiting_seconds"] < found["seconds"]
    assert "It waits for real images during" in found["verdict"]
    assert ("Of 2 ranks" in found["verdict"]) == (ranks == 2)


def test_iterations_follow_each_other_so_that_nothing_is_read_in_vain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is read ahead of another iteration would be dropped, and waited for again."""
    begun: list[int] = []
    begin = StreamedImages.begin
    monkeypatch.setattr(
        StreamedImages, "begin", lambda self, iteration: (begun.append(iteration), begin(self, iteration))
    )
    fastdm.pack("digits", tmp_path / "digits.fastdm")
    profile_digits(tmp_path)
    assert begun == list(range(len(begun)))
