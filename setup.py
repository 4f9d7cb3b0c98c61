"""Build the C++ extension ``fastdm._native`` and map the folder ``kernels/`` to ``fastdm.kernels``.

``FASTDM_PURE=1`` leaves the extension out: everything then runs through PyTorch, slower.
Building needs a C++17 compiler, Python's header files and nanobind (a build requirement), but neither torch nor any
other library.
"""

import os
import sysconfig
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CCompilerError, ExecError, PlatformError

WITHOUT = "FASTDM_PURE=1 installs without the extension, slower."


class BuildNative(build_ext):
    def build_extension(self, ext: Extension) -> None:
        header = Path(sysconfig.get_path("include"), "Python.h")
        if not header.exists():
            raise SystemExit(
                f"fastdm: building the C++ extension needs Python's header files, but {header} does not exist "
                f"(Debian/Ubuntu: apt-get install python3-dev). {WITHOUT}"
            )
        try:
            super().build_extension(ext)
        except (CCompilerError, ExecError, PlatformError) as error:
            raise SystemExit(
                f"fastdm: building the C++ extension failed ({error}). It needs a C++17 compiler "
                f"(Debian/Ubuntu: apt-get install g++). {WITHOUT}"
            ) from None


def native_extension() -> Extension:
    import nanobind

    robin_map = Path(nanobind.include_dir()).parent / "ext" / "robin_map" / "include"
    return Extension(
        "fastdm._native",
        sources=["csrc/bindings.cpp", "csrc/nanobind_runtime.cpp"],
        depends=sorted(str(header) for header in Path("csrc").glob("*.h")),
        include_dirs=[nanobind.include_dir(), nanobind.source_dir(), str(robin_map), "csrc"],
        extra_compile_args=[
            "-std=c++17",
            "-O3",
            "-fvisibility=hidden",
            "-fno-strict-aliasing",
            "-ffp-contract=off",
            "-pthread",
        ],
        extra_link_args=["-pthread"],
        define_macros=[("NDEBUG", None)],
        language="c++",
    )


pure = os.environ.get("FASTDM_PURE", "0") not in ("", "0")
kernels = ["fastdm.kernels", *(f"fastdm.kernels.{name}" for name in find_packages("kernels"))]
setup(
    packages=[*find_packages(include=["fastdm", "fastdm.*"]), *kernels],
    package_dir={"fastdm.kernels": "kernels"},
    ext_modules=[] if pure else [native_extension()],
    cmdclass={"build_ext": BuildNative},
)
