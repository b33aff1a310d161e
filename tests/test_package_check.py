"""scripts/package_check.sh: a long step says now and then how far it is."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "package_check.sh"


@pytest.mark.parametrize("status", [0, 3])
def test_a_long_step_shows_progress_and_failures_their_log(tmp_path: Path, status: int) -> None:
    text = SCRIPT.read_text()
    functions = text[text.index("# note TEXT") : text.index('note "source distribution')]
    step = f"quietly build.log sh -c 'echo \"[3/7] c++ a.cpp\"; sleep 2.5; echo the end; exit {status}'"
    script = f"set -euo pipefail\nout={tmp_path}\n{functions}\n{step}\necho after it"
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, env={"EVERY": "1", "PATH": "/usr/bin:/bin"}
    )
    lines = done.stdout.splitlines()
    assert lines[0].endswith("still running [3/7]")
    assert done.returncode == (1 if status else 0)
    assert lines[-1] == ("the end" if status else "after it")
    assert done.stderr == (f"package-check: failed, see {tmp_path}/build.log\n" if status else "")
    assert (tmp_path / "build.log").read_text() == "[3/7] c++ a.cpp\nthe end\n"
