"""Build the fake CUDA runtime and driver for the torch that is installed, with a C compiler and `nm`."""

import hashlib
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).parent
LIBRARIES = {  # the name that torch links against: its source, and the functions that are its own
    "libcudart.so.13": ("runtime.c", r"(__)?cuda[A-Z]\w*"),
    "libcuda.so.1": ("driver.c", r"cu(?!sparse|blas|fft|file|dnn|solver|rand)[A-Z]\w*"),
}


def build() -> list[Path]:
    """The two libraries, built once for a version of torch and of their sources, under `build/fakegpu`."""
    sources = b"".join(file.read_bytes() for file in (*sorted(HERE.glob("*.c")), Path(__file__)))
    out = HERE.parents[1] / "build" / "fakegpu" / f"{version('torch')}-{hashlib.sha256(sources).hexdigest()[:12]}"
    if not out.exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent) as folder:
            _build(Path(folder))
            shutil.copytree(folder, out)
    return [out / name for name in LIBRARIES]


def _build(out: Path) -> None:
    torch = _package("torch")
    wanted = _symbols("--undefined-only", *sorted((torch / "lib").glob("*.so")))
    if not any(name.startswith("cuda") for name in wanted):
        raise SystemExit("the fake GPU needs a torch that is built for CUDA 13")
    includes = [f"-I{folder}" for folder in _headers(torch)]
    for name, (source, own) in LIBRARIES.items():
        compiled, missing, names = out / f"{source}.o", out / f"{source}.missing.c", out / f"{source}.map"
        _run("cc", "-O1", "-fPIC", "-w", *includes, "-c", HERE / source, "-o", compiled)
        functions = sorted(found for found in wanted - _symbols("--defined-only", compiled) if re.fullmatch(own, found))
        missing.write_text("#include <stdio.h>\n" + "".join(map(_not_there, functions)))
        names.write_text(f"{name} {{ global: *; }};\n")
        versions = [f"-Wl,--version-script={names}"] if source == "runtime.c" else []
        options = ["-shared", "-fPIC", "-w", f"-Wl,-soname,{name}", *versions]
        _run("cc", *options, compiled, missing, "-o", out / name, "-ldl", "-lpthread")


def _not_there(function: str) -> str:
    """A function that torch may call but nothing here has needed yet: it says so, and is "not supported" (801)."""
    return f'int {function}(void) {{ return fputs("the fake GPU has no {function}\\n", stderr), 801; }}\n'


def _symbols(which: str, *files: Path) -> set[str]:
    dynamic = ["-D"] if which == "--undefined-only" else []
    lines = _run("nm", *dynamic, which, *files).splitlines()
    return {line.split()[-1].split("@")[0] for line in lines if line[:1] in " 0123456789abcdef" and line.strip()}


def _headers(torch: Path) -> Iterator[Path]:
    """Folders with the headers of CUDA 13; a part of them may come with triton only."""
    nvidia = torch.parent / "nvidia" / "cu13" / "include"
    found = [folder for folder in (nvidia, _package("triton") / "backends" / "nvidia" / "include") if folder.exists()]
    if not any((folder / "cuda_runtime_api.h").exists() for folder in found):
        raise SystemExit("the fake GPU needs cuda_runtime_api.h, which comes with torch or triton, and found none")
    yield from found


def _package(name: str) -> Path:
    found = find_spec(name)
    if found is None or found.origin is None:
        raise SystemExit(f"the fake GPU needs {name}, which is not installed")
    return Path(found.origin).parent


def _run(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}:\n{done.stderr}")
    return done.stdout
