"""What an iteration costs in figures that no noise touches: launches and bytes, against bench/budget.json.

A step that calls more ops or allocates more than recorded is either a mistake or a decision: in the latter case record
the new figures, which the message gives. They may differ by a few per cent between versions of PyTorch.
"""

import json

import pytest

from bench.harness.machine import REPOSITORY
from bench.launches import count
from fastdm.system.native import native

BUDGET = json.loads((REPOSITORY / "bench" / "budget.json").read_text())
SLACK = 1.05


@pytest.mark.parametrize("aug_mode", ["S", "M"])
@pytest.mark.parametrize("path", ["cpu", "device"])
def test_launches_do_not_grow_with_the_classes_and_stay_in_budget(path: str, aug_mode: str) -> None:
    if path == "cpu" and native() is None:
        pytest.skip("the C++ extension is not installed")
    few, many = (count(path, classes, aug_mode) for classes in (10, 100))
    assert few.calls == many.calls
    found = {"ops": few.calls.total(), "bytes": few.allocated}
    budget = BUDGET[f"{path} {aug_mode}"]
    assert found["ops"] <= SLACK * budget["ops"], f"{found}: {few.calls.most_common(10)}"
    assert found["bytes"] <= SLACK * budget["bytes"], found
    # The images of ten times the classes take ten times the bytes, but the weights are the same.
    assert many.allocated <= 10 * few.allocated


def test_the_public_loop_calls_several_times_as_many() -> None:
    assert count("public", 10, "S").calls.total() > 4 * BUDGET["device S"]["ops"]
