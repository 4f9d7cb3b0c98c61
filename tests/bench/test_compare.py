"""The comparison of two builds, interleaved, and that what is compared asks for public names alone."""

import ast
from pathlib import Path

from bench import compare
from bench.harness.machine import REPOSITORY
from bench.harness.workloads import CPU


def build(folder: Path) -> Path:
    """What `setup.py build` leaves, by links."""
    package = folder / "fastdm"
    package.mkdir(parents=True)
    for entry in (REPOSITORY / "fastdm").iterdir():
        (package / entry.name).symlink_to(entry)
    (package / "kernels").symlink_to(REPOSITORY / "kernels")
    return folder


def test_two_builds_are_compared_interleaved(tmp_path: Path) -> None:
    builds = {name: build(tmp_path / name) for name in ("there", "here")}
    for benchmark in ("uniform", "gather"):
        line = compare.compare(benchmark, CPU, builds, rounds=3)
        name, ratio = line.split()[:2]
        assert name == benchmark
        assert float(ratio) > 0
        assert "there" in line
        assert "here" in line
    kernels = tmp_path / "there" / "fastdm" / "kernels"
    kernels.unlink()
    kernels.mkdir()
    (kernels / "__init__.py").write_text("raise ImportError('built without')\n")
    assert "ImportError: built without" in compare.compare("uniform", CPU, builds, rounds=1)


def test_a_step_is_compared_through_condense(tmp_path: Path) -> None:
    line = compare.compare("step", CPU, {"there": build(tmp_path / "a"), "here": build(tmp_path / "b")}, rounds=1)
    assert float(line.split()[1]) > 0, line


def test_only_public_names_are_asked_for() -> None:
    """So that the same file runs in a commit whose modules were elsewhere."""
    tree = ast.parse((REPOSITORY / "bench" / "compare.py").read_text())
    modules = {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    modules |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    ours = {module for module in modules if module.split(".")[0] in ("fastdm", "bench")}
    assert ours == {
        "fastdm",
        "fastdm.data",
        "fastdm.kernels",
        "bench.harness",
        "bench.harness.machine",
        "bench.harness.timer",
    }
