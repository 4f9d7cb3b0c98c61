"""What a user gets: sdist, wheel, an installation without the extension, a machine without a compiler or triton."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

import fastdm

REPOSITORY = Path(__file__).parent.parent

RUN = """
import sys, numpy, torch, fastdm, fastdm.kernels
print(fastdm.__file__)
images = (numpy.arange(2 * 8 * 8 * 8 * 3) * 37 % 251).astype("uint8").reshape(16, 8, 8, 3)
result = fastdm.condense((images, numpy.arange(16) % 2), ipc=1, iterations=2, batch_real=4, network="ConvNetD1",
                         device="cpu")
torch.save(result.images, sys.argv[1])
"""


def run(*command: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        list(map(str, command)), cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, timeout=600
    )


def build_wheel(source: Path, out: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return run(
        sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", out, source,
        cwd=out.parent, **environment,
    )  # fmt: skip


def condense_with(wheel: Path, folder: Path) -> torch.Tensor:
    """Install the wheel into a folder, condense with it in a fresh process, return the images."""
    site = folder / "site"
    result = run(sys.executable, "-m", "pip", "install", "--no-deps", "--target", site, wheel, cwd=folder)
    assert result.returncode == 0, result.stderr
    result = run(sys.executable, "-c", RUN, folder / "images.pt", cwd=folder, PYTHONPATH=str(site))
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[0] == str(site / "fastdm" / "__init__.py")
    images: torch.Tensor = torch.load(folder / "images.pt")
    return images


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    result = run(sys.executable, "-m", "build", "--sdist", "--no-isolation", "-o", folder, REPOSITORY, cwd=folder)
    assert result.returncode == 0, result.stdout + result.stderr
    (path,) = folder.glob("fastdm-*.tar.gz")
    return path


def test_sdist_wheel_and_pure_wheel(sdist: Path, tmp_path: Path) -> None:
    """The sdist holds all that a wheel needs, the wheel all that a run needs; the pure one gives the same images."""
    images = []
    for kind, environment in (("native", {}), ("pure", {"FASTDM_PURE": "1"})):
        folder = tmp_path / kind
        folder.mkdir()
        result = build_wheel(sdist, folder / "wheel", **environment)
        assert result.returncode == 0, result.stdout + result.stderr
        (wheel,) = (folder / "wheel").glob("fastdm-*.whl")
        names = zipfile.ZipFile(wheel).namelist()
        assert any(name.startswith("fastdm/_native") for name in names) == (kind == "native")
        kernels = {f"fastdm/{file.relative_to(REPOSITORY)}" for file in (REPOSITORY / "kernels").rglob("*.py")}
        assert {"fastdm/py.typed", "fastdm/data/pool.py", *kernels} <= set(names)
        template = "fastdm/applications/report/template"
        assert {f"{template}/{name}" for name in ("page.html", "page.js", "style.css")} <= set(names)
        assert all(name.startswith(("fastdm/", "fastdm-")) for name in names)
        images.append(condense_with(wheel, folder))
    # The same draws; the arithmetic differs by rounding only.
    assert (images[0] - images[1]).abs().max() < 1e-4


def test_no_compiler_is_one_clear_sentence(sdist: Path, tmp_path: Path) -> None:
    result = build_wheel(sdist, tmp_path / "wheel", CC="/no/compiler", CXX="/no/compiler")
    assert result.returncode != 0
    output = result.stdout + result.stderr
    assert "It needs a C++17 compiler (Debian/Ubuntu: apt-get install g++). FASTDM_PURE=1 installs without" in output
    assert "Traceback" not in output


# What a bare machine lacks, taken from the Python that builds through a `sitecustomize` module.
NO_HEADERS = """
import sysconfig
get_path = sysconfig.get_path
sysconfig.get_path = lambda name, *rest: "/no/headers" if name == "include" else get_path(name, *rest)
"""
NO_VENV = "import sys; sys.modules['ensurepip'] = None"
OLD = "import sys; sys.version_info = (3, 10)"


def test_no_header_files_is_one_clear_sentence(sdist: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(NO_HEADERS)
    result = build_wheel(sdist, tmp_path / "wheel", PYTHONPATH=str(tmp_path))
    assert result.returncode != 0
    output = result.stdout + result.stderr
    assert "/no/headers/Python.h does not exist (Debian/Ubuntu: apt-get install python3-dev)." in output
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("site", "environment", "sentence"),
    [
        pytest.param(
            "", {"PYTHON": "/no/python"}, r"Python 3.11 or newer \(.*: apt-get install python3-venv\)", id="python"
        ),
        pytest.param(OLD, {}, "Python 3.11 or newer: make PYTHON=/path/to/python3.11 demo", id="old"),
        pytest.param(NO_VENV, {}, r"Python's venv module \(.*: apt-get install python3-venv\)", id="venv"),
        pytest.param(NO_HEADERS, {}, r"Python's header files \(.*: apt-get install python3-dev\)", id="headers"),
        pytest.param("", {"CXX": "/no/compiler"}, r"a C\+\+17 compiler \(.*: apt-get install g\+\+\)", id="compiler"),
    ],
)
def test_make_says_what_the_machine_lacks_before_pip_starts(
    tmp_path: Path, site: str, environment: dict[str, str], sentence: str
) -> None:
    for name in ("Makefile", "pyproject.toml", "setup.py", "fastdm/version.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(REPOSITORY / name, tmp_path / name)
    (tmp_path / "sitecustomize.py").write_text(site)
    variables = ("=".join(pair) for pair in {"PYTHON": sys.executable, **environment}.items())
    # MAKEFLAGS: the suite itself may run under make.
    result = run(
        "make", "--no-print-directory", "demo", *variables,
        cwd=tmp_path, PYTHONPATH=str(tmp_path), MAKEFLAGS="",
    )  # fmt: skip
    assert result.returncode != 0
    assert re.fullmatch(f"fastdm needs {sentence}\n", result.stdout)


def test_the_citation_names_this_version() -> None:
    assert f"\nversion: {fastdm.__version__}\n" in (REPOSITORY / "CITATION.cff").read_text()


def test_import_is_light() -> None:
    """`import fastdm` needs neither torch nor triton nor torchvision; condensing on a CPU needs no triton."""
    code = "import sys, fastdm; assert not {'torch', 'triton', 'torchvision', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_condense_without_triton(tmp_path: Path) -> None:
    block = "import sys; sys.modules['triton'] = None\n"
    result = run(sys.executable, "-c", block + RUN, tmp_path / "images.pt", cwd=tmp_path)
    assert result.returncode == 0, result.stderr


def test_the_script_for_a_fresh_machine_finds_the_packages_that_the_readme_names() -> None:
    script = (REPOSITORY / "tests" / "fresh" / "run.sh").read_text()
    (line,) = [line for line in script.splitlines() if line.startswith("readme=")]
    found = subprocess.run(["bash", "-c", f"{line}; echo $readme"], cwd=REPOSITORY, capture_output=True, text=True)
    assert found.stdout.split() == ["g++", "make", "python3-dev", "python3-venv"]
