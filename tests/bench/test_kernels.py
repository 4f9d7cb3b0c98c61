"""The kernel benchmark refuses a speed where the check is red."""

import dataclasses

import pytest
import torch

from bench import kernels
from bench.harness.case import Case, check
from bench.harness.workloads import CPU
from bench.kernels import cases


def first(op: str, backward: bool = False) -> Case:
    return next(case for case in cases(CPU, smoke=True) if case.op == op and ("backward" in case.name) == backward)


def test_every_op_has_cases_and_they_take_turns() -> None:
    ops = [case.op for case in cases(CPU, smoke=True)]
    families = [
        "dsa",
        "norm_relu_pool",
        "conv_norm_relu_pool",
        "norm_relu_pool_mean",
        "class_mean_difference",
        "uniform",
        "draw",
    ]
    assert ops[: len(families)] == families


def test_names_are_distinct_at_real_sizes() -> None:
    for device in ("cpu", "meta"):
        names = [case.name for case in cases(torch.device(device), smoke=False)]
        assert len(set(names)) == len(names)


@pytest.mark.parametrize("case", [*cases(CPU, smoke=True)], ids=lambda case: case.name)
def test_every_op_is_right(case: Case) -> None:
    found = check(case, case.make(0, CPU))
    assert found["correct"], found


@pytest.mark.parametrize("op", ["norm_relu_pool", "norm_relu_pool_mean", "uniform"])
def test_a_right_op_gets_a_speed(op: str) -> None:
    row = kernels.measure(first(op), CPU, copy_peak=1e9, smoke=True, compiled=False)
    assert row["correct"]
    assert row["error"] <= row["tolerance"]
    assert set(row["seconds"]) == {"fastdm", "eager"}
    median = row["seconds"]["fastdm"]["median"]
    assert row["gb_per_s"] == pytest.approx(row["bytes"] / median / 1e9)
    assert row["percent_of_copy"] == pytest.approx(100 * row["gb_per_s"])
    assert ("note" in row) == (row["percent_of_copy"] > 100)
    assert row["speedup"]["eager"] == pytest.approx(row["seconds"]["eager"]["median"] / median)


@pytest.mark.parametrize("op", ["norm_relu_pool", "uniform"])
@pytest.mark.parametrize("wrong", [1.01, float("nan")])
def test_a_wrong_op_gets_none(op: str, wrong: float) -> None:
    case = first(op)
    spoilt = dataclasses.replace(case, run=lambda *arguments: case.run(*arguments) * wrong)
    row = kernels.measure(spoilt, CPU, copy_peak=None, smoke=True, compiled=False)
    assert not row["correct"]
    assert "seconds" not in row


@pytest.mark.parametrize("wrong", [1.001, float("nan")])
def test_a_small_error_of_every_gradient_is_seen_where_a_few_may_be_off(wrong: float) -> None:
    case = first("conv_norm_relu_pool", backward=True)

    def run(*arguments: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        out, gradient = case.run(*arguments)
        return out, gradient * wrong

    found = check(dataclasses.replace(case, run=run), case.make(0, CPU))
    assert not found["correct"], found
