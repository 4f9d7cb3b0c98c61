"""The documents: links lead somewhere, and commands have the flags that they are shown with."""

import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from fastdm.cli import app

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted(
    path for folder in (".", "docs", "bench", "examples", "tests/fakegpu") for path in (ROOT / folder).glob("*.md")
)
COMMANDS = {
    (path, line)
    for path in DOCUMENTS
    for line in re.findall(r"^(?:\$ )?(fastdm .*)$", path.read_text().replace("\\\n", " "), re.M)
}


def anchors(text: str) -> set[str]:
    """The names that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


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


@pytest.mark.parametrize(("path", "line"), sorted(COMMANDS), ids=lambda value: str(value)[:60])
def test_every_command_shown_has_its_flags(path: Path, line: str) -> None:
    command = get_command(app)
    words = shlex.split(line, comments=True)[1:]
    while words and hasattr(command, "commands") and words[0] in command.commands:
        command = command.commands[words.pop(0)]
    flags = {name for option in command.params for name in (*option.opts, *option.secondary_opts)} | {"--help", "-h"}
    unknown = [word for word in words if word.startswith("--") and word.partition("=")[0] not in flags]
    assert not unknown, f"{path.name}: {line}"
