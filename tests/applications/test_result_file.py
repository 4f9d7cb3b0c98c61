"""Results of long jobs, kept from one process to the next."""

import json
from pathlib import Path

import pytest

from fastdm.applications.result_file import ResultFile
from fastdm.errors import FastDMError


def opened(path: Path, *, resume: bool = False, overwrite: bool = False, seed: int = 0) -> ResultFile:
    return ResultFile(path, {"seed": seed, "sizes": (1, 2)}, resume=resume, overwrite=overwrite)


def test_records_are_found_again(tmp_path: Path) -> None:
    path = tmp_path / "new" / "results.json"
    first = opened(path)
    first.add(name="a", number=0, value=[0.5])
    first.add(name="a", number=1, value=[0.25])
    later = opened(path, resume=True)
    assert later.find(name="a", number=1) == {"name": "a", "number": 1, "value": [0.25]}
    assert later.find(name="b") is None
    later.add(name="b")
    assert len(json.loads(path.read_text())["results"]) == 3
    assert opened(path, overwrite=True).records == []


def test_results_are_neither_lost_nor_mixed(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    opened(path).add(name="a")
    with pytest.raises(FastDMError, match=r"results.json is there already: resume it, overwrite it"):
        opened(path)
    with pytest.raises(FastDMError, match=r"begun with other settings \(seed was 0 and is 1\)"):
        opened(path, resume=True, seed=1)
    with pytest.raises(FastDMError, match="ask for one"):
        opened(path, resume=True, overwrite=True)
    path.write_text('{"settings": {}}')
    with pytest.raises(FastDMError, match=r"results.json is damaged"):
        opened(path, resume=True)


def test_of_a_group_of_settings_only_what_differs_is_named(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    first, other = ({"seed": 0, "settings": {"ipc": ipc, "lr_img": 1.0}} for ipc in (1, 2))
    ResultFile(path, first, resume=False, overwrite=False).add(name="a")
    with pytest.raises(FastDMError, match=r"other settings \(ipc was 1 and is 2\); use the same, or overwrite"):
        ResultFile(path, other, resume=True, overwrite=False)
