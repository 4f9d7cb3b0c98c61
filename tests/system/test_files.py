"""Files are written whole or not at all, with the permissions and at the place that a user expects."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastdm.errors import FastDMError
from fastdm.system.files import atomic_write, locked, put_aside, user_path, writing
from fastdm.system.streams import stderr_to


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_a_new_file_has_the_permissions_of_any_other(mask: int, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        with writing(tmp_path / "new") as temporary:
            temporary.unlink()  # as a library that makes a private file of its own and renames it
            os.close(os.open(temporary, os.O_CREAT | os.O_WRONLY, 0o600))
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o666 & ~mask


def test_a_file_that_is_replaced_keeps_its_permissions_and_links_are_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    target = tmp_path / "elsewhere" / "file"
    target.write_text("old")
    target.chmod(0o640)
    (tmp_path / "link").symlink_to(target)
    with writing(tmp_path / "link") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert target.read_text() == "new"
    assert stat.S_IMODE(target.stat().st_mode) == 0o640


@pytest.mark.parametrize("kind", ["fifo", "device", "folder"])
def test_what_is_not_a_regular_file_is_not_replaced(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "special"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/null")
    else:
        path.mkdir()
    with pytest.raises(FastDMError, match="special cannot be written: it is not a regular file"), writing(path):
        pass
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    assert [each.name for each in tmp_path.iterdir()] == ["special"]


def test_a_tensor_file_on_a_full_disk_is_a_sentence(tmp_path: Path) -> None:
    def fail(path: Path) -> None:
        with writing(path) as temporary:
            torch.save({"a": torch.zeros(9)}, temporary / "no folder" / "x")

    with pytest.raises(FastDMError, match="cannot be written"):
        fail(tmp_path / "x.pt")
    assert list(tmp_path.iterdir()) == []


def test_a_long_name_and_a_killed_process_s_rest_are_no_hindrance(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 250)
    (tmp_path / f".{'x' * 200}.{os.getpid()}.tmp").write_text("rest")
    with atomic_write(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    code = (
        "import os, sys, time; from pathlib import Path; from fastdm.system.files import locked\n"
        "with locked(Path(sys.argv[1]), 'x'):\n    print('held', flush=True); sys.stdin.read(1); os._exit(9)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    with (
        pytest.raises(FastDMError, match="the folder is in use by another process"),
        locked(tmp_path / "lock", "the folder"),
    ):
        pass
    process.communicate("x")
    assert process.returncode == 9
    assert (tmp_path / "lock").exists()
    for _ in range(2):
        with locked(tmp_path / "lock", "the folder"):
            pass
    assert not (tmp_path / "lock").exists()


def test_what_is_put_aside_is_never_lost(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / "log").write_text(str(number))
        put_aside(tmp_path / "log")
    kept = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert kept == {"log.damaged": "0", "log.damaged-1": "1", "log.damaged-2": "2"}


def test_a_home_folder_is_expanded_where_a_shell_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    assert user_path("~/a~b") == Path("/home/someone/a~b")
    assert user_path("./~/a") == Path("~/a")
    assert user_path("~nobody-has-this-name.pt") == Path("~nobody-has-this-name.pt")


def test_what_libraries_print_goes_to_a_file(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def disturb() -> None:
        with stderr_to(tmp_path / "messages.txt"):
            os.write(2, b"from C\n")
            raise ValueError("an error")

    with pytest.raises(ValueError, match="an error"):
        disturb()
    os.write(2, b"after\n")
    assert (tmp_path / "messages.txt").read_text() == "from C\n"
    assert capfd.readouterr().err == "after\n"
    with stderr_to(tmp_path / "no" / "folder"), stderr_to(None):
        os.write(2, b"kept\n")
    assert capfd.readouterr().err == "kept\n"
