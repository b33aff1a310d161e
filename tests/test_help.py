"""`--help` of every program: an example that its own parser accepts, and a word about every option."""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess

import pytest
from markdown_pages import ROOT
from programs import PROGRAMS, parser_of

if importlib.util.find_spec("mmengine") is None:
    PROGRAMS = [name for name in PROGRAMS if not name.startswith(("tools/", "examples/petr_style/"))]
SCRIPTS = [f"scripts/{name}.sh" for name in ("cuda_check", "gpu_check", "package_check", "sanitize")]
SCRIPTS += ["scripts/setup.sh", "tools/dist_run.sh", "tools/dist_train.sh", "tools/dist_test.sh"]
PROGRAMS = [*PROGRAMS, "scripts/bootstrap.py", "raggedbev.info"]


@pytest.mark.parametrize("program", PROGRAMS)
def test_examples_are_understood(program: str) -> None:
    call = f"python {program}" if program.endswith(".py") else f"python -m {program}"
    text = parser_of(program).format_help().replace("\\\n", " ")
    examples = re.findall(rf"^(?:Example: | *){re.escape(call)}(.*)$", text, re.MULTILINE)
    assert examples
    for example in examples:
        parser_of(program).parse_args(shlex.split(example, comments=True))


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_option_is_explained(program: str) -> None:
    silent = [action.dest for action in parser_of(program)._actions if not action.help]
    assert not silent


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts(script: str) -> None:
    done = subprocess.run(["bash", str(ROOT / script), "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == ""
    assert re.search(rf"^ .*{re.escape(script)}", done.stdout, re.MULTILINE)
    assert "#" not in re.sub(r" # .*", "", done.stdout)


def test_every_file_of_tools_is_a_program() -> None:
    for path in (ROOT / "tools").glob("*.py"):
        assert '__name__ == "__main__"' in path.read_text(), f"{path} is a part of programs: it belongs into a folder"
