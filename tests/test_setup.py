"""How setup.py compiles: the flags of the environment are kept, and do not turn the optimisation off."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import setuptools

from raggedbev import _extension

pytestmark = pytest.mark.skipif(not _extension.COMPILED, reason="no compiler: the operators were not built")
SETUP = Path(__file__).parents[1] / "setup.py"


@pytest.mark.parametrize(
    "given, added",
    [
        ({}, ["-O3", "-g0"]),
        ({"CFLAGS": "-march=native"}, ["-O3", "-g0"]),
        ({"CFLAGS": "-g"}, ["-O3"]),
        ({"CXXFLAGS": "-O1"}, ["-g0"]),
        ({"CFLAGS": "-O1", "CXXFLAGS": "-g3 -fsanitize=address"}, []),
    ],
)
def test_flags(monkeypatch, given, added):
    for name in ("CFLAGS", "CXXFLAGS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {**given, "RAGGEDBEV_CUDA": "0"}.items():
        monkeypatch.setenv(name, value)
    asked = {}
    monkeypatch.setattr(setuptools, "setup", asked.update)
    monkeypatch.chdir(SETUP.parent)
    runpy.run_path(str(SETUP))
    (extension,) = asked["ext_modules"]
    flags = extension.extra_compile_args["cxx"]
    assert [flag for flag in flags if flag[:2] in ("-O", "-g")] == added
    assert "-fno-wrapv" in flags  # whatever the interpreter was compiled with
