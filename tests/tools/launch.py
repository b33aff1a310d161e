"""Run the command-line tools of this repository as a user does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def environment(**extra: str) -> dict[str, str]:
    """The environment of a tool: the package from this tree, one thread a process."""
    paths = [str(ROOT / "plugin"), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(p for p in paths if p),
        "OMP_NUM_THREADS": "1",
        "PYTHON": sys.executable,
        **extra,
    }


def run_tool(*arguments: object, expect: int = 0, **extra: str) -> str:
    """Run ``arguments``, a tool of this repository first; return what it printed.

    Fails with the whole output when the exit status is not ``expect``.
    """
    command = [str(a) for a in arguments]
    if command[0].endswith(".py"):
        command.insert(0, sys.executable)
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environment(**extra),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    assert done.returncode == expect, f"{command} ended with {done.returncode}\n{done.stdout}"
    return done.stdout
