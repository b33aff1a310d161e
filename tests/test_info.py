"""`python -m raggedbev.info`: what it prints is so, with and without the compiled operators and the mm packages."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import raggedbev
from raggedbev import _extension, info

ROOT = Path(__file__).resolve().parent.parent
SCHEMAS = re.findall(r'm\.def\(\s*"(\w+)\(', (ROOT / "csrc" / "library.cpp").read_text())
HAS_MM = importlib.util.find_spec("mmdet3d") is not None


def printed(capsys: pytest.CaptureFixture, *arguments: str) -> str:
    assert info.main(list(arguments)) == 0
    return capsys.readouterr().out


def test_versions(capsys: pytest.CaptureFixture) -> None:
    text = printed(capsys, "--no-mm")
    assert f"raggedbev {raggedbev.__version__} in {Path(raggedbev.__file__).parent}" in text
    assert f"torch {torch.__version__}" in text
    assert "Registered" not in text


def test_every_operator_is_listed_once(capsys: pytest.CaptureFixture) -> None:
    text = printed(capsys, "--no-mm")
    if not _extension.COMPILED:
        assert "None: they were" in text
        return
    lines = {line.split()[0]: line for line in text.splitlines() if "compiled  " in line or "plain torch" in line}
    assert set(lines) == set(SCHEMAS)
    for name, keys in info.compiled_operators().items():
        assert "CPU" in keys and lines[name].split()[1] == "compiled"
        assert lines[name].endswith("compiled" if "CUDA" in keys else "plain torch")
    assert bool(info.cuda_architectures()) == any("CUDA" in keys for keys in info.compiled_operators().values())


def test_without_compiled_operators(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(_extension, "COMPILED", False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    text = printed(capsys)
    assert "None: they were not built. Every operator runs as plain torch" in text
    assert "None: mmengine, mmcv, mmdet, mmdet3d not installed. The core works without." in text
    assert info.cuda_architectures() == ()


def test_mm_packages_that_do_not_fit(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    def refuse(name: str) -> None:
        raise AssertionError("MMCV==2.3.0 is used but incompatible")

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(info.importlib, "import_module", refuse)
    monkeypatch.setattr(_extension, "COMPILED", False)
    text = printed(capsys)
    assert "None: the mm packages do not import (AssertionError: MMCV==2.3.0 is used but incompatible)" in text
    assert "None: they were built, but do not load with this torch." in text


@pytest.mark.skipif(not HAS_MM, reason="the mm packages are not installed")
def test_registered_parts_in_a_process_of_its_own() -> None:
    done = subprocess.run([sys.executable, "-m", "raggedbev.info"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == ""
    text = done.stdout
    swap_ins = text[text.index("raggedbev.mm: mmdet3d model") : text.index("raggedbev.mm.streampetr:")]
    names = {word.strip(",") for word in swap_ins.split()}
    assert {"BatchedStreamPETRHead", "BatchedCenterHead", "BatchedHungarianAssigner3D"} <= names
    assert "PerSample" not in swap_ins
    assert "PerSampleStreamPETRHead" in text


def test_help_has_an_example(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        info.main(["--help"])
    assert "Example: python -m raggedbev.info" in capsys.readouterr().out
