"""What the tools say outside of the virtual environment, and what the scripts around torchrun say of bad numbers."""

import subprocess
import sys

import pytest
from launch import ROOT, run_tool

TOOLS = sorted(path.name for path in (ROOT / "tools").glob("*.py"))


@pytest.mark.parametrize("tool", [name for name in TOOLS if name != "demo.py"])
def test_a_python_without_the_packages(tool):
    command = [sys.executable, "-S", "-E", f"tools/{tool}", "config.py"]  # the standard library alone
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1 and " is not installed in this Python (" in done.stderr
    assert done.stderr.endswith("activate the environment: . .venv/bin/activate\n")


def test_errors_of_other_kinds_keep_their_traceback():
    code = "import sys; sys.path.insert(0, 'tools'); import shared.environment; import no_such_package"
    done = subprocess.run([sys.executable, "-S", "-E", "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert "Traceback" in done.stderr and "No module named 'no_such_package'" in done.stderr


@pytest.mark.parametrize("number", ["two", "0", "-1", "1.5", ""])
def test_number_of_processes(number):
    for script, others in (("dist_train.sh", []), ("dist_test.sh", ["x.pth"])):
        output = run_tool(f"tools/{script}", "config.py", *others, number, expect=2)
        assert output == f"error: PROCESSES_PER_NODE must be a number of at least 1, got '{number}'\n"
