"""Who may know whom: suites know the harness and the baselines, not each other; nothing knows the tests."""

import ast
from pathlib import Path

from bench.harness.machine import REPOSITORY

BENCH = REPOSITORY / "bench"


def imported(path: Path) -> set[str]:
    """Modules of bench and tests that a file imports."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{name.name}" for name in node.names}
    return {name for name in found if name.split(".")[0] in ("bench", "tests")}


def test_suites_know_the_harness_and_the_baselines_only() -> None:
    below = {"harness": {"harness", "baselines"}, "baselines": {"baselines"}}
    for path in BENCH.rglob("*.py"):
        room = path.relative_to(BENCH).parts[0]
        allowed = below.get(room, {"harness", "baselines"})
        for name in imported(path):
            assert name.split(".")[0] == "bench", f"{path} imports {name}"
            if room != "report.py":
                assert name.split(".")[1] in allowed, f"{path} imports {name}"


def test_files_and_functions_stay_short() -> None:
    for path in BENCH.rglob("*.py"):
        text = path.read_text()
        assert len(text.splitlines()) <= 450, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert (node.end_lineno or 0) - node.lineno < 60, f"{path}: {node.name}"
