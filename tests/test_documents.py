"""The documents: links lead somewhere, commands have the flags that they are shown with, and Python snippets run."""

import importlib.util
import re
import shlex
import tomllib
from pathlib import Path

import numpy as np
import pytest
from typer.main import get_command

import fastdm
from fastdm.cli import app

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted(
    path for folder in (".", "docs", "bench", "examples", "tests/fakegpu") for path in (ROOT / folder).glob("*.md")
)
FOREIGN = {
    *("--index-url", "--signal", "--kill-on-bad-exit"),
    *("--nproc-per-node", "--nnodes", "--rdzv-backend", "--rdzv-endpoint", "--max-restarts"),
}
"""Flags of pip, torchrun and srun."""


def code(path: Path) -> list[str]:
    """The lines of a document's blocks of code, and what stands between single backticks."""
    text = path.read_text()
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.M | re.S)
    inline = re.findall(r"`([^`]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [line for line in lines if not line.startswith("#")] + [" ".join(each.split()) for each in inline]


CODE = {path: code(path) for path in DOCUMENTS}
COMMANDS = sorted(
    {
        (path, "fastdm " + found[1])
        for path, lines in CODE.items()
        for line in lines
        if (found := re.search(r"^(?:\$ |srun .*? |(?:torchrun|python) .*?-m )?fastdm ([a-z-].*)$", line))
    }
)
SNIPPETS = [
    (path, snippet)
    for path in DOCUMENTS
    for snippet in re.findall(r"^```python\n(.*?)^```", path.read_text(), re.M | re.S)
]
SMALLER = {
    r'"FashionMNIST"': '"digits"',
    r'"CIFAR10"': '"colours.npz"',
    r"iterations=\d+": "iterations=2",
    r"epochs=\d+": "epochs=1",
    r"num_eval=\d+\)": "num_eval=1, epochs=1)",
    r"num_eval=\d+": "num_eval=1",
}


def anchors(text: str) -> set[str]:
    """The names that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def flags_of(command: object) -> set[str]:
    return {name for option in command.params for name in (*option.opts, *option.secondary_opts)} | {"--help"}  # type: ignore[attr-defined]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_within_the_repository_leads_somewhere(path: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if target.startswith(("http:", "https:")):
            continue
        name, _, anchor = target.partition("#")
        page = (path.parent / name).resolve() if name else path
        if not page.exists() or (anchor and anchor not in anchors(page.read_text())):
            broken.append(target)
    assert not broken


@pytest.mark.parametrize(("path", "line"), COMMANDS, ids=lambda value: str(value)[-60:])
def test_every_command_shown_has_its_flags(path: Path, line: str) -> None:
    command = get_command(app)
    words = shlex.split(line, comments=True)[1:]
    while words and hasattr(command, "commands") and words[0] in command.commands:
        command = command.commands[words.pop(0)]
    assert not hasattr(command, "commands") or words[0].startswith("-"), f"{path.name}: {line}"
    unknown = [word for word in words if word.startswith("--") and word.partition("=")[0] not in flags_of(command)]
    assert not unknown, f"{path.name}: {line}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_name_in_code_exists(path: Path) -> None:
    """Flags, also where they stand alone; modules that Python is to run; targets of the Makefile."""
    program = get_command(app)
    known = set().union(*map(flags_of, (program, *program.commands.values()))) | FOREIGN  # type: ignore[attr-defined]
    flags = {flag.replace("-", "_") for flag in known}
    programs = "".join(each.read_text() for room in ("bench", "examples") for each in (ROOT / room).rglob("*.py"))
    makefile = (ROOT / "Makefile").read_text()
    for line in CODE[path]:
        for module in re.findall(r"python -m ((?:bench|examples|tests|fastdm)[\w.]*)", line):
            assert importlib.util.find_spec(module), line
        for targets in re.findall(r"^make ((?:[a-z-]+ ?)+)(?: |$)", line):
            assert all(re.search(rf"^{target}:", makefile, re.M) for target in targets.split()), line
        for flag in re.findall(r"(?:^|\s)(--[a-zA-Z][\w-]+)", line):
            name = flag.replace("-", "_")  # a flag of fastdm may be cut short
            assert any(each.startswith(name) for each in flags) or f'"{flag}"' in programs, f"{flag} in {line}"


def test_the_readme_installs_every_extra() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (named,) = re.findall(r"^pip install '\.\[(.*)\]'", (ROOT / "README.md").read_text(), re.M)
    assert named.split(",") == sorted(set(extras) - {"dev"})


@pytest.mark.parametrize(("path", "snippet"), SNIPPETS, ids=lambda value: str(value)[-60:])
def test_every_snippet_runs(path: Path, snippet: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With small budgets and sets; a snippet that imports nothing goes on from the one before it."""
    monkeypatch.chdir(tmp_path)
    images = np.random.default_rng(0).integers(0, 256, (300, 32, 32, 3)).astype(np.uint8)
    labels = np.arange(300) % 10
    np.savez("colours.npz", x_train=images[:200], y_train=labels[:200], x_test=images[200:], y_test=labels[200:])
    for large, small in SMALLER.items():
        snippet = re.sub(large, small, snippet)
    names: dict[str, object] = {}
    if "import fastdm\n" not in snippet:
        names |= {"fastdm": fastdm, "synthetic": fastdm.random_selection("digits", ipc=1)}
    exec(compile(snippet, str(path), "exec"), names)
