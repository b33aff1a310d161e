"""The argument parsers of the repository's programs, without running these."""

from __future__ import annotations

import argparse
import contextlib
import runpy
import sys
import warnings
from functools import cache

import pytest
from markdown_pages import ROOT

FOLDERS = ("tools", "benchmarks", "examples", "examples/petr_style", "docs/drawing")
PROGRAMS = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in FOLDERS
    for path in (ROOT / folder).glob("*.py")
    if "__main__" in path.read_text(encoding="utf-8")
)
"""Python files that are typed into a shell."""


class Found(Exception):
    """Carries the parser out of a program that was about to parse its arguments."""


@cache
def parser_of(program: str) -> argparse.ArgumentParser:
    """The parser of a file of the repository, or of a module of the package."""

    def stop(self: argparse.ArgumentParser, *args: object, **kwargs: object) -> None:
        raise Found(self)

    path, argv = list(sys.path), sys.argv
    sys.argv = [program]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", stop)
        patch.setattr(argparse.ArgumentParser, "parse_known_args", stop)
        try:
            if program.endswith(".py"):
                sys.path.insert(0, str((ROOT / program).parent))
                runpy.run_path(str(ROOT / program), run_name="__main__")
            else:
                with contextlib.suppress(KeyError), warnings.catch_warnings():
                    # Another test of this process may have imported it; here it is run anew.
                    warnings.filterwarnings("ignore", ".* found in sys.modules", RuntimeWarning)
                    runpy.run_module(program, run_name="__main__", alter_sys=False)
        except Found as found:
            return found.args[0]
        finally:
            sys.path[:], sys.argv = path, argv
    raise AssertionError(f"{program} parses no arguments")
