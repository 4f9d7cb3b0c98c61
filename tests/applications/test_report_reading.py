"""What a report reads of a run's log."""

import json
from pathlib import Path

import pytest

from fastdm.applications.report.reading import read_log
from fastdm.errors import FastDMError


def test_the_log_counts_the_seconds_of_all_sessions(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    seconds = [1.0, 2.0, 0.5, 1.5]
    lines = [json.dumps({"iteration": i, "loss": 2.0 * i, "seconds": s}) for i, s in enumerate(seconds)]
    log.write_text("\n".join([*lines, '{"iteration": 4, "lo']))
    assert read_log(log) == ([(0, 0.0), (1, 2.0), (2, 4.0), (3, 6.0)], 3.5)
    log.write_text("\n".join(["{", *lines]))
    with pytest.raises(FastDMError, match="line 1 of"):
        read_log(log)
