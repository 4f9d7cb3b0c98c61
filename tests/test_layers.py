"""Who may import whom, read from the source: every import counts, also one inside a function."""

import ast
import fnmatch
from collections.abc import Iterator, Mapping
from graphlib import TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

REPOSITORY = Path(__file__).parents[1]


class Import(NamedTuple):
    """The module that imports, the module that it imports, and where."""

    by: str
    of: str
    line: int


def imports(folder: Path, package: str) -> Iterator[Import]:
    """Every import in the Python files of a folder that is installed as `package`, by the full names of modules.

    Relative imports and the literal arguments of `importlib.import_module` are resolved. `from a import b` is an import
    of a.b if that is a module of the folder, else of a.
    """
    modules = {_module_name(file, folder, package): file for file in sorted(folder.rglob("*.py"))}
    for by, file in modules.items():
        parent = by if file.name == "__init__.py" else by.rpartition(".")[0]
        for node in ast.walk(ast.parse(file.read_text(), str(file))):
            for name in _imported(node, parent, modules):
                yield Import(by, name, getattr(node, "lineno", 0))


def _module_name(file: Path, folder: Path, package: str) -> str:
    parts = file.relative_to(folder).with_suffix("").parts
    return ".".join([package, *(parts[:-1] if parts[-1] == "__init__" else parts)])


def _imported(node: ast.AST, parent: str, modules: Mapping[str, Path]) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        source = _absolute("." * node.level + (node.module or ""), parent)
        names = [f"{source}.{alias.name}" for alias in node.names]
        return [name if name in modules else source for name in names]
    if not isinstance(node, ast.Call) or ast.unparse(node.func) not in ("import_module", "importlib.import_module"):
        return []
    return [_absolute(str(argument.value), parent) for argument in node.args[:1] if isinstance(argument, ast.Constant)]


def _absolute(name: str, parent: str) -> str:
    bare = name.lstrip(".")
    level = len(name) - len(bare)
    if level == 0:
        return name
    base = parent.split(".")[: len(parent.split(".")) - level + 1]
    return ".".join([*base, *([bare] if bare else [])])


def forbidden(found: Iterator[Import], within: str, allowed: Mapping[str, tuple[str, ...]]) -> list[str]:
    """The imports between modules of the package `within` that a table does not allow, as sentences.

    allowed: pattern of modules -> patterns of what they may import, both without the package's name; the first pattern
    that fits a module counts, and a module that fits none may import nothing.
    """
    return [
        f"{item.by} imports {item.of} (line {item.line})"
        for item in found
        if _is_in(item.of, within)
        and not any(fnmatch.fnmatchcase(_bare(item.of, within), pattern) for pattern in _row(item.by, within, allowed))
    ]


def _row(module: str, within: str, allowed: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    return next((row for pattern, row in allowed.items() if fnmatch.fnmatchcase(_bare(module, within), pattern)), ())


def _bare(module: str, within: str) -> str:
    return module.removeprefix(within).removeprefix(".") or "__init__"


def _is_in(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


SHARED = ("numerics", "table")
KERNELS = {
    "__init__": ("*.op", "dispatch", "table"),
    "compile_check": ("*.triton", "row_means", "launch"),
    "blocks.op": ("blocks.choice", "dispatch", "checks", *SHARED),
    # Snapshots are chosen by the numbers of `random`: each form by its own.
    "snapshots.op": ("random.op", "dispatch", "checks"),
    "snapshots.reference": ("random.reference",),
    "snapshots.triton": ("random.triton", "launch"),
    "*.op": ("dispatch", "checks", *SHARED),
    "blocks.choice": ("dispatch",),
    "dispatch": ("extension",),
    # The forms of an op do not know each other.
    "*.reference": SHARED,
    "*.native": ("extension", *SHARED),
    "augmentation.triton": ("augmentation.triton_geometry", "launch", *SHARED),
    "blocks.triton": (
        "blocks.triton_tiles",
        "blocks.triton_conv",
        "blocks.triton_conv_backward",
        "blocks.triton_conv_backward",
        "row_means",
        "launch",
        *SHARED,
    ),
    "*.triton": ("row_means", "launch", *SHARED),
    # Triton code in more than one kernel or op.
    "augmentation.triton_geometry": SHARED,
    "blocks.triton_tiles": ("launch", *SHARED),
    "blocks.triton_conv": ("launch", *SHARED),
    "blocks.triton_conv_backward": ("launch", *SHARED),
    "row_means": ("launch", *SHARED),
    "launch": ("numerics",),
    "extension": ("numerics",),
}
"""Who may import what within kernels/. What is not listed imports nothing of it."""

TRITON = (
    "*.triton",
    "augmentation.triton_geometry",
    "blocks.triton_tiles",
    "blocks.triton_conv",
    "blocks.triton_conv_backward",
    "row_means",
    "launch",
    "compile_check",
    "dispatch",
)
"""Who may import triton; `dispatch` asks whether it can be imported."""


@pytest.fixture(scope="module")
def of_kernels() -> list[Import]:
    return list(imports(REPOSITORY / "kernels", "fastdm.kernels"))


def test_kernels_import_each_other_by_the_table(of_kernels: list[Import]) -> None:
    assert forbidden(iter(of_kernels), "fastdm.kernels", KERNELS) == []


def test_kernels_know_nothing_of_fastdm_but_its_extension(of_kernels: list[Import]) -> None:
    others = [i for i in of_kernels if _is_in(i.of, "fastdm") and not _is_in(i.of, "fastdm.kernels")]
    assert [(i.by, i.of) for i in others] == [("fastdm.kernels.extension", "fastdm._native")]
    assert not [i for i in of_kernels if i.of.split(".")[0] in ("bench", "tests")]


def test_triton_is_imported_where_its_code_is(of_kernels: list[Import]) -> None:
    users = {_bare(item.by, "fastdm.kernels") for item in of_kernels if _is_in(item.of, "triton")}
    assert {name for name in users if not any(fnmatch.fnmatchcase(name, pattern) for pattern in TRITON)} == set()
    assert {"augmentation.triton", "dispatch"} <= users


def test_every_row_of_the_table_names_modules(of_kernels: list[Import]) -> None:
    names = {_bare(item.by, "fastdm.kernels") for item in of_kernels}
    assert [pattern for pattern in KERNELS if not fnmatch.filter(names, pattern)] == []


FLOORS = (
    ("kernels", "_native"),
    ("errors", "version"),
    ("augmentation", "system"),
    ("data", "networks"),
    ("objectives", "synthetic"),
    ("evaluation", "runs"),
    ("condensation",),
    ("applications", "compat"),
    ("cli", "__init__"),  # the command and the face: what people call
    ("__main__",),
)
"""The rooms of fastdm/, from the ground up: a room imports from the floors below it, and not from its neighbours."""


@pytest.fixture(scope="module")
def of_fastdm() -> list[Import]:
    return [item for item in imports(REPOSITORY / "fastdm", "fastdm") if _is_in(item.of, "fastdm")]


def test_rooms_import_from_the_floors_below_only(of_fastdm: list[Import]) -> None:
    floor = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
    upward = [
        f"{item.by} imports {item.of} (line {item.line})"
        for item in of_fastdm
        if _room(item.by) != _room(item.of) and floor[_room(item.by)] <= floor[_room(item.of)]
    ]
    assert upward == []


def test_no_modules_import_each_other_in_a_circle(of_fastdm: list[Import]) -> None:
    graph: dict[str, set[str]] = {}
    for item in of_fastdm:
        graph.setdefault(item.by, set()).add(item.of)
    TopologicalSorter(graph).prepare()  # raises CycleError, naming the circle


def _room(module: str) -> str:
    return _bare(module, "fastdm").split(".")[0]


def test_imports_of_every_kind_are_found(tmp_path: Path) -> None:
    (tmp_path / "room").mkdir()
    (tmp_path / "__init__.py").write_text("from .room import door")
    (tmp_path / "room" / "__init__.py").write_text("")
    (tmp_path / "room" / "door.py").write_text(
        "import os.path\n"
        "from .. import key, value\n"
        "from ..key import turn\n"
        "from . import window\n"
        "def late():\n"
        "    import importlib\n"
        "    importlib.import_module('house.key')\n"
        "    importlib.import_module('.key')\n"
    )
    (tmp_path / "room" / "window.py").write_text("if True:\n    from house.room.door import late\n")
    (tmp_path / "key.py").write_text("")
    found = [(item.by, item.of) for item in imports(tmp_path, "house")]
    assert found.count(("house.room.door", "house.key")) == 3
    assert set(found) == {
        ("house", "house.room.door"),
        ("house.room.door", "os.path"),
        ("house.room.door", "house"),
        ("house.room.door", "house.key"),
        ("house.room.door", "house.room.window"),
        ("house.room.door", "importlib"),
        ("house.room.door", "house.room.key"),
        ("house.room.window", "house.room.door"),
    }
    bad = forbidden(imports(tmp_path, "house"), "house", {"__init__": ("room.*",), "*.door": ("*",)})
    assert bad == ["house.room.window imports house.room.door (line 2)"]
