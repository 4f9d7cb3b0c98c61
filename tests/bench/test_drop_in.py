"""The benchmark of the drop-in calls compares like with like."""

from bench import drop_in


def test_both_ways_give_the_same_results() -> None:
    assert drop_in.evaluation(ipc=1, epochs=1, tests=20, repeats=1)["error"] == 0
    assert drop_in.set_up(per_class=2, repeats=1)["error"] < 1e-5
    row = drop_in.matching(ipc=1, batch_real=2, repeats=1)
    assert row["ratio"] == row["public_ms"] / row["ms"]
