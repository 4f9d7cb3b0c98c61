"""Results as data: one JSON file per suite and machine under ``bench/results/``, with what is needed to trust it.

A file holds one run of one command; `SCHEMA` says what must be in it, and a test checks every committed file. It also
holds a hash of the code that it measured, so that a report can say which results are stale whatever became of the
commit.
"""

import datetime
import hashlib
import json
import os
import platform
import re
import shlex
import statistics
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from fastdm.system.files import atomic_write

REPOSITORY = Path(__file__).resolve().parent.parent
FOLDER = REPOSITORY / "bench" / "results"
_SOURCES = {".py", ".cpp", ".h"}

_STEP = (
    "csrc",
    "kernels",
    *(f"fastdm/{name}.py" for name in ("augmentation", "graph", "matching", "networks", "plan", "real", "step")),
)
MEASURED: dict[str, tuple[str, ...]] = {
    "accuracy": (*_STEP, "fastdm/evaluation.py", "fastdm/build.py"),
    "compile": ("kernels",),
    "cpu_report": (),
    "cpu_step": _STEP,
    "evaluation": (*_STEP, "fastdm/evaluation.py"),
    "fakegpu": ("fastdm", "kernels"),
    "gpu_report": ("kernels", "tests/gpu"),
    "host": (*_STEP, "fastdm/compat.py", "fastdm/data"),
    "kernels": ("csrc", "kernels"),
    "launches": _STEP,
    "loading": ("csrc", "fastdm/data"),
    "memory": _STEP,
    "peaks": (),
    "precision": (*_STEP, "fastdm/evaluation.py", "fastdm/build.py"),
    "scale": _STEP,
    "torch_compile": _STEP,
    "traffic": ("kernels",),
    "waterfall": _STEP,
}
"""The code that each suite measures: its results are stale once that has changed."""

_ANYWHERE = {"compile": "compile/kernels.json", "fakegpu": "fakegpu.json", "traffic": "traffic.json"}
"""The files of suites whose results are the same on every machine."""

_SPREAD = {
    "type": "object",
    "required": ["n", "median", "p20", "p80"],
    "properties": {"n": {"type": "integer", "minimum": 1}},
    "additionalProperties": {"type": "number"},
}
_ROW: dict[str, Any] = {
    "type": "object",
    "required": ["name"],
    "properties": {
        "name": {"type": "string"},
        "seconds": {"type": "object", "additionalProperties": _SPREAD},
        "error": {"type": "number"},
        "tolerance": {"type": "number"},
        "median_error": {"type": "number"},
        "median_tolerance": {"type": "number"},
        "correct": {"type": "boolean"},
        "failure": {"type": "string"},
    },
    # A speed stands beside a check only where the check is green.
    "if": {"required": ["correct"], "properties": {"correct": {"const": False}}},
    "then": {"not": {"required": ["seconds"]}},
}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["schema", "suite", "command", "commit", "code", "date", "machine", "settings", "rows"],
    "additionalProperties": False,
    "properties": {
        "schema": {"const": 1},
        "suite": {"enum": sorted(MEASURED)},
        "command": {"type": "string"},
        "commit": {"type": "string", "pattern": "^[0-9a-f]{7,40}(-dirty)?$"},
        "code": {"type": "object", "additionalProperties": {"type": "string", "pattern": "^([0-9a-f]{12}|absent)$"}},
        "date": {"type": "string", "format": "date-time"},
        "machine": {
            "type": "object",
            "required": ["device", "cpu", "cores", "memory_gib", "load", "system", "versions"],
            "properties": {"versions": {"type": "object"}, "cores": {"type": "integer"}, "load": {"type": "number"}},
        },
        "settings": {"type": "object"},
        "rows": {"type": "array", "minItems": 1, "items": _ROW},
    },
}


def save(suite: str, rows: Sequence[dict[str, Any]], settings: dict[str, Any], device: str = "cpu") -> Path:
    """Write a suite's rows, replacing the file of an earlier run on this machine; called again as rows come in."""
    about = machine(device)
    result = {
        "schema": 1,
        "suite": suite,
        "command": command(),
        "commit": commit(),
        "code": {path: _hash(path) for path in _measured(suite, device)},
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": about,
        "settings": settings,
        "rows": list(rows),
    }
    path = folder() / _ANYWHERE.get(suite, f"{suite}--{slug(about['cpu'])}--{slug(about['device'])}.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        temporary.write_text(_text(result))
    return path


def _text(result: dict[str, Any]) -> str:
    """JSON with a line for every row, so that a change of one shows as one."""
    about = json.dumps({key: value for key, value in result.items() if key != "rows"}, indent=1).removesuffix("\n}")
    rows = ",\n".join("  " + json.dumps(row, ensure_ascii=False) for row in result["rows"])
    return f'{about},\n "rows": [\n{rows}\n ]\n}}\n'


def folder() -> Path:
    """Where results are written and read: the environment variable FASTDM_RESULTS, else ``bench/results``."""
    return Path(os.environ.get("FASTDM_RESULTS", FOLDER)).resolve()


def load(suite: str) -> list[dict[str, Any]]:
    """The results of a suite, one of each machine."""
    paths = sorted(folder().glob(_ANYWHERE.get(suite, f"{suite}--*.json")))
    return [json.loads(path.read_text()) for path in paths]


def changed(result: dict[str, Any]) -> list[str]:
    """The measured code that is no longer what it was when the result was taken."""
    return [path for path, before in result["code"].items() if _hash(path) != before]


def spread(values: Sequence[float]) -> dict[str, float | int]:
    """n, median, 20th and 80th percentile."""
    ordered = sorted(values)
    if len(ordered) == 1:
        return {"n": 1, "median": ordered[0], "p20": ordered[0], "p80": ordered[0]}
    fifths = statistics.quantiles(ordered, n=5, method="inclusive")
    return {"n": len(ordered), "median": statistics.median(ordered), "p20": fifths[0], "p80": fifths[3]}


def machine(device: str = "cpu") -> dict[str, Any]:
    """What ran: device, processor, memory, load, system, versions."""
    on_gpu = device.startswith("cuda")
    about: dict[str, Any] = {
        "device": torch.cuda.get_device_name(device) if on_gpu else "cpu",
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load": round(os.getloadavg()[0], 2),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": {
            "python": platform.python_version(),
            **{name: _version(name) for name in ("torch", "triton", "numpy", "fastdm")},
        },
    }
    if on_gpu:
        about["cuda"] = torch.version.cuda
        about["driver"] = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").split("\n")[0]
    return about


def command() -> str:
    """The command line that this process was started with, as one types it in the repository."""
    module = getattr(sys.modules["__main__"].__spec__, "name", None)
    program = f"python -m {module}" if module else f"python {Path(sys.argv[0]).name}"
    return " ".join([program, *(shlex.quote(relative(word)) for word in sys.argv[1:])])


def commit() -> str:
    """The commit that was measured; "-dirty" if the measured code differed from it."""
    head = _output("git", "-C", str(REPOSITORY), "rev-parse", "--short=12", "HEAD")
    if not head:
        return "0000000"
    code = ("fastdm", "kernels", "csrc", "bench/*.py")
    return head + ("-dirty" if _output("git", "-C", str(REPOSITORY), "status", "--porcelain", "--", *code) else "")


def _measured(suite: str, device: str) -> list[str]:
    """On a GPU, the C++ code is not part of what runs."""
    return [path for path in MEASURED[suite] if path != "csrc" or device == "cpu"]


@cache
def _hash(path: str) -> str:
    """Of the names and contents of the source files that a path of the repository names."""
    where = REPOSITORY / path
    files = [where] if where.is_file() else sorted(file for file in where.rglob("*") if file.suffix in _SOURCES)
    if not files:
        return "absent"
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(REPOSITORY)}\0".encode() + file.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def relative(word: str) -> str:
    """Paths of this machine say nothing to others: keep the last folder's name."""
    return Path(word).name if Path(word).is_absolute() else word


def _cpu() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    found = re.search(r"model name\s*:\s*(.*)", text)
    return " ".join(re.sub(r"\((R|TM)\)|CPU|Processor", " ", found[1]).split()) if found else platform.machine()


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"


def _output(*arguments: str) -> str:
    try:
        return subprocess.run(arguments, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
