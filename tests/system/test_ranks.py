"""What tells a process that it is one of several."""

import pytest

from fastdm.system.ranks import _first_node, _launched, shared


def test_torchrun_s_variables_are_taken_as_they_are() -> None:
    launched = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "1"}
    assert _launched({**launched, "HOME": "/root"}) == launched
    assert _launched({**launched, "WORLD_SIZE": "1"}) is None
    assert _launched({"HOME": "/root"}) is None


def test_slurm_s_step_is_a_job_of_ranks_and_its_script_is_not() -> None:
    script = {"SLURM_JOB_ID": "47", "SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_LOCALID": "0"}
    assert _launched(script) is None
    step = {
        **script, "SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_STEP_NUM_TASKS": "8",
        "SLURM_STEP_NODELIST": "gpu[007-008]", "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
    }  # fmt: skip
    assert _launched(step) == {
        "RANK": "5",
        "WORLD_SIZE": "8",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "4",
        "MASTER_ADDR": "gpu007",
        "MASTER_PORT": "20047",
    }
    assert _launched({**step, "SLURM_STEP_NUM_TASKS": "1"}) is None


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("gpu7", "gpu7"), ("a1,a2", "a1"), ("gpu[003-005,9],login", "gpu003"), ("n[5,7]-ib", "n5-ib"), ("x[1-2]", "x1")],
)
def test_the_first_node_of_slurm_s_list(nodes: str, first: str) -> None:
    assert _first_node(nodes) == first


def test_one_process_is_alone() -> None:
    with shared() as ranks:
        assert (ranks.rank, ranks.size, ranks.first) == (0, 1, True)
        assert ranks.exchange({"a": 1}) == [{"a": 1}]
