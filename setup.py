"""Builds the compiled operators `raggedbev._C` where that is possible, and a pure Python package elsewhere.

In: csrc/**/*.cpp always, csrc/**/*.cu for CUDA builds of torch when nvcc is there.
RAGGEDBEV_CUDA: auto (default) takes the CUDA sources when it can, 0 leaves them out, 1 demands them.
Compiler and linker flags come from the usual variables (CXX, CFLAGS, CXXFLAGS, LDFLAGS, TORCH_CUDA_ARCH_LIST).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).resolve().parent


def why_not_compiled() -> str | None:
    """The reason why nothing can be compiled here, or None."""
    try:
        import torch  # noqa: F401
    except ImportError:
        return "torch is not installed in the build environment (install with --no-build-isolation to compile)"
    compiler = os.environ.get("CXX", "c++").split()[0]
    if shutil.which(compiler) is None:
        return f"there is no C++ compiler ({compiler!r} was not found)"
    if not Path(sysconfig.get_paths()["include"], "Python.h").exists():
        return "Python's C headers are missing (Python.h; packages call them python3-dev or python3-devel)"
    return None


def why_no_cuda() -> str | None:
    """The reason why the CUDA sources cannot be compiled here, or None."""
    import torch
    from torch.utils.cpp_extension import CUDA_HOME

    if torch.version.cuda is None:
        return f"torch {torch.__version__} is a build without CUDA"
    nvcc = Path(CUDA_HOME, "bin", "nvcc") if CUDA_HOME else None
    if nvcc is None or not nvcc.exists():
        return "nvcc was not found (set CUDA_HOME)"
    release = re.search(r"release (\d+)\.", subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout)
    if release is None or release[1] != torch.version.cuda.split(".")[0]:
        return f"nvcc is of CUDA {release[1] if release else '?'}, torch of CUDA {torch.version.cuda}"
    return None


def sources(suffix: str) -> list[str]:
    return sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "csrc").rglob(f"*{suffix}"))


def with_cuda() -> bool:
    choice = os.environ.get("RAGGEDBEV_CUDA", "auto")
    if choice not in ("auto", "0", "1"):
        raise SystemExit(f"RAGGEDBEV_CUDA must be auto, 0 or 1, got {choice!r}")
    if choice == "0" or (choice == "auto" and not sources(".cu")):
        return False
    reason = why_no_cuda()
    if reason is not None and choice == "1":
        raise SystemExit(f"RAGGEDBEV_CUDA=1, but {reason}")
    if reason is not None:
        print(f"raggedbev: building for the CPU only: {reason}.", file=sys.stderr)
    return reason is None


def extension_arguments() -> dict[str, object]:
    reason = why_not_compiled()
    if reason is not None:
        if os.environ.get("RAGGEDBEV_CUDA") == "1":
            raise SystemExit(f"RAGGEDBEV_CUDA=1, but {reason}")
        print(f"raggedbev: installing without compiled operators (plain torch, slower): {reason}.", file=sys.stderr)
        return {}

    import torch
    from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension

    # The OpenMP run time is the one that torch has loaded, hence a compiler flag and nothing to link.
    openmp = ["-fopenmp"] if "parallel backend: OpenMP" in torch.__config__.parallel_info() else []
    given = f"{os.environ.get('CFLAGS', '')} {os.environ.get('CXXFLAGS', '')}".split()  # a sanitizer build's, say
    optimization = [] if any(flag.startswith("-O") for flag in given) else ["-O3"]
    debugging = [] if any(flag.startswith("-g") for flag in given) else ["-g0"]
    # Nobody reads floating-point exceptions or errno, and without them more loops become SIMD.
    simd = ["-fopenmp-simd", "-fno-trapping-math", "-fno-math-errno"]
    # Python's own flags define overflow of integers. Then indices i + j of ints need not be neighbours, loops over them
    # read entry by entry, and sanitizers look for no overflow.
    simd.append("-fno-wrapv")
    cxx_flags = ["-Wall", *simd, *openmp, *optimization, *debugging]
    cuda = with_cuda()
    extension = (CUDAExtension if cuda else CppExtension)(
        name="raggedbev._C",
        sources=sources(".cpp") + (sources(".cu") if cuda else []),
        depends=sources(".h") + sources(".cuh"),
        include_dirs=[str(ROOT / "csrc")],
        define_macros=[("RAGGEDBEV_WITH_CUDA", None)] if cuda else [],
        extra_compile_args={"cxx": cxx_flags, "nvcc": ["-O3"]},
    )
    return {"ext_modules": [extension], "cmdclass": {"build_ext": BuildExtension}}


setup(**extension_arguments())
