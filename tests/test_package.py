"""What a user gets: sdist, wheel, an installation without the extension, a machine without a compiler or triton."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

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
        assert {"fastdm/py.typed", "fastdm/kernels/reference.py", "fastdm/data/pool.py"} <= set(names)
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
    assert "It needs a C++17 compiler (Debian/Ubuntu: apt-get install g++); FASTDM_PURE=1 installs without" in output
    assert "Traceback" not in output


def test_import_is_light() -> None:
    """`import fastdm` needs neither torch nor triton nor torchvision; condensing on a CPU needs no triton."""
    code = "import sys, fastdm; assert not {'torch', 'triton', 'torchvision', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_condense_without_triton(tmp_path: Path) -> None:
    block = "import sys; sys.modules['triton'] = None\n"
    result = run(sys.executable, "-c", block + RUN, tmp_path / "images.pt", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
