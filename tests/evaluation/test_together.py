"""Networks that are trained together are those that are trained one by one; the graph itself is in tests/fakegpu."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fastdm.data import Dataset, open_dataset
from fastdm.data.subset import of_classes
from fastdm.evaluation import trial
from fastdm.evaluation.protocol import Protocol
from fastdm.evaluation.together import Together, networks_together
from fastdm.evaluation.training import LabelledImages, train_network
from fastdm.networks.architectures import build_network
from fastdm.networks.model import Network
from fastdm.synthetic.initial import random_selection

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return of_classes(open_dataset("digits"), [0, 1, 4])


def built(name: str) -> Network:
    return build_network(name, channels=1, num_classes=3, image_size=8, drawn=False)


def weights(network: Network) -> Tensor:
    return torch.cat([tensor.detach().flatten().float() for tensor in network.state_dict().values()])


DM = Protocol(["MLP"], "color_crop_cutout_scale_rotate", 2, 4, lr_net=0.05, batch_train=5, seed=3)


@pytest.mark.parametrize(
    ("name", "protocol"),
    [("ConvNetD1", DM), ("ConvNetBN", DM), ("ConvNetD1", replace(DM, name="idc", epochs=6))],
    ids=["dm", "batch norm", "idc"],
)
def test_each_network_is_the_one_that_is_trained_alone(name: str, protocol: Protocol, digits: Dataset) -> None:
    """Six and five epochs of three batches, the last of them smaller, across the changes of the learning rate."""
    examples = LabelledImages.of(random_selection(digits, 4), digits.mean, digits.std, CPU)
    alone = {number: built(name) for number in (0, 3)}
    for number, network in alone.items():
        train_network(network, examples, protocol, number, torch.float32)
    together = [(number, built(name)) for number in (0, 3)]
    done: list[int] = []
    Together(together, examples, protocol, torch.float32).run(done.append)
    assert done == [*range(1, protocol.steps(len(examples)) + 1)]
    for number, network in together:
        exact = weights(alone[number])
        # The learning rate is a float32 here: each update is off by 2^-24 of itself, and grows little in so few.
        assert (weights(network) - exact).abs().max() <= 1e-5 * exact.abs().max()
    assert (weights(alone[0]) - weights(alone[3])).abs().max() > 0.1


def test_networks_trained_together_are_tested_like_those_that_are_trained_alone(digits: Dataset) -> None:
    assert digits.test is not None
    protocol = replace(DM, networks=["ConvNetD1"], checks=2)
    examples, tests = (
        LabelledImages.of(images, digits.mean, digits.std, CPU) for images in (random_selection(digits, 4), digits.test)
    )
    asked = trial.Trial(digits, protocol, examples, tests, CPU, torch.float32)
    jobs, steps = [("ConvNetD1", 0), ("ConvNetD1", 1)], []
    together = asked.together(jobs, lambda: steps.append(1))
    assert len(steps) == 2 * protocol.steps(len(examples))
    for job, answers in zip(jobs, together, strict=True):
        alone = asked(job, lambda: None)
        assert len(answers) == len(alone) == 2
        for found, expected in zip(answers, alone, strict=True):
            assert int(found.confusion.sum()) == len(tests)
            # The weights differ by the rounding of the learning rate (see above): hardly an image is at a boundary.
            assert abs(found.accuracy - expected.accuracy) <= 2 / len(tests)


def test_on_a_cpu_none_are_trained_together(digits: Dataset) -> None:
    examples = LabelledImages.of(random_selection(digits, 4), digits.mean, digits.std, CPU)
    assert networks_together(built("MLP"), examples, DM) == 0


class Stub:
    """Stands for a `Trial` on a GPU of three networks called A and one called B."""

    device = torch.device("cuda")
    examples = protocol = None

    def __init__(self, fails_after: int | None) -> None:
        self.fails_after = fails_after
        self.alone: list[tuple[str, int]] = []

    def build(self, job: tuple[str, int]) -> Network:
        return built("MLP")

    def __call__(self, job: tuple[str, int], after_step: Callable[[], None]) -> str:
        self.alone.append(job)
        after_step()
        return f"{job} alone"

    def together(self, jobs: list[tuple[str, int]], after_step: Callable[[], None]) -> list[str]:
        for done in range(len(jobs)):
            if done == self.fails_after:
                raise RuntimeError("not permitted when stream is capturing\nand more")
            after_step()
        return [f"{job} together" for job in jobs]


JOBS = [("A", 0), ("A", 1), ("A", 2), ("B", 0)]


@pytest.fixture
def _two_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "networks_together", lambda *_: 2)


@pytest.mark.usefixtures("_two_at_once")
def test_networks_of_one_name_are_trained_together(monkeypatch: pytest.MonkeyPatch) -> None:
    found = trial.train_all(Stub(None), JOBS, None, lambda done, at_once: "")  # type: ignore[arg-type]
    assert found == [f"{job} together" for job in JOBS]
    monkeypatch.setattr(trial, "networks_together", lambda *_: 0)
    found = trial.train_all(Stub(None), JOBS, None, lambda done, at_once: "")  # type: ignore[arg-type]
    assert found == [f"{job} alone" for job in JOBS]


@pytest.mark.usefixtures("_two_at_once")
def test_what_cannot_be_recorded_is_trained_one_by_one_and_said(caplog: pytest.LogCaptureFixture) -> None:
    found = trial.train_all(Stub(0), JOBS, None, lambda done, at_once: "")  # type: ignore[arg-type]
    assert found == [f"{job} alone" for job in JOBS]
    (message,) = caplog.messages
    assert message == "networks are trained one by one, not by a graph: not permitted when stream is capturing"
    with pytest.raises(RuntimeError, match="not permitted"):  # of a training that has begun
        trial.train_all(Stub(1), JOBS, None, lambda done, at_once: "")  # type: ignore[arg-type]


def test_a_warm_up_may_repeat_any_batch(digits: Dataset) -> None:
    """A graph is recorded after some runs, each of which goes on in the order of the images: beyond its end too."""
    examples = LabelledImages.of(random_selection(digits, 4), digits.mean, digits.std, CPU)
    together = Together([(0, built("MLP"))], examples, DM, torch.float32)
    for update in together._updates:
        for _ in range(4):
            update()
