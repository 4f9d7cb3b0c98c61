from pathlib import Path

import pytest


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of records, in place of the committed ones."""
    monkeypatch.setenv("FASTDM_RESULTS", str(tmp_path))
    return tmp_path
