"""Reads records of a file past the page cache."""

from pathlib import Path

import numpy as np
import pytest

native = pytest.importorskip("fastdm._native")

FIRST = 4096


@pytest.fixture
def file(tmp_path: Path) -> tuple[Path, np.ndarray]:
    """A file of 300 records of 3 × 9 × 7 bytes, a size that leaves them unaligned."""
    records = np.random.default_rng(0).integers(0, 256, (300, 3, 9, 7), dtype=np.uint8)
    path = tmp_path / "records"
    path.write_bytes(bytes(FIRST) + records.tobytes())
    return path, records


@pytest.mark.parametrize("index", [[], [0], [299], [5, 5, 0, 299, 17], range(300)], ids=str)
def test_records_are_those_of_the_file(file: tuple[Path, np.ndarray], index: list[int]) -> None:
    path, records = file
    rows = np.array(index, dtype=np.int64)
    out = np.zeros((len(rows), 3, 9, 7), dtype=np.uint8)
    native.RecordFile(str(path)).read(FIRST, rows, out)
    np.testing.assert_array_equal(out, records[rows])


def test_a_file_system_without_direct_reads_is_read_through_the_page_cache() -> None:
    version = native.RecordFile("/proc/version")
    assert not version.direct
    out = np.zeros((1, 1, 1, 5), dtype=np.uint8)
    version.read(0, np.array([0]), out)
    assert out.tobytes() == b"Linux"


def test_what_cannot_be_read_is_an_error(file: tuple[Path, np.ndarray]) -> None:
    path, _ = file
    records = native.RecordFile(str(path))
    out = np.zeros((1, 3, 9, 7), dtype=np.uint8)
    with pytest.raises(OSError, match="ends early"):
        records.read(FIRST, np.array([300]), out)
    with pytest.raises(OSError, match=r"cannot open .*absent: No such file"):
        native.RecordFile(str(path.with_name("absent")))
    with pytest.raises(ValueError, match="Record -1 at position 0"):
        records.read(FIRST, np.array([-1]), out)
    with pytest.raises(ValueError, match=r"Record .* does not exist"):
        records.read(FIRST, np.array([2**62]), out)
    byte = np.zeros((1, 1, 1, 1), dtype=np.uint8)
    for first, last in ((2**63 - 11, 3), (0, 2**63 - 5)):  # its end, rounded up, is not a number of 64 bits
        with pytest.raises(ValueError, match=rf"Record {last} at position 0 does not exist: there are \d+\."):
            records.read(first, np.array([last]), byte)
    with pytest.raises(ValueError, match="room for 1 records and should have it for 2"):
        records.read(FIRST, np.array([0, 1]), out)
    with pytest.raises(ValueError, match="first is negative"):
        records.read(-1, np.array([0]), out)
