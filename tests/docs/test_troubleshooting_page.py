"""The messages on the page are those that the packages print."""

from __future__ import annotations

import importlib
import importlib.util
import io
import re
from pathlib import Path

import pytest
import torch
from markdown_pages import ROOT, Page

from raggedbev import _extension

TEXT = Page(ROOT / "docs" / "guide" / "troubleshooting.md").text
needs_mm = pytest.mark.skipif(importlib.util.find_spec("mmdet3d") is None, reason="the mm packages are not installed")


def shown(message: str) -> bool:
    """Whether the page has the message, in which it may leave out parts by `...`."""
    lines = [line for line in TEXT.splitlines() if len(line) > 20]
    return any(re.fullmatch(re.escape(line).replace(r"\.\.\.", ".*"), message) for line in lines)


def test_slow_path(recwarn: pytest.WarningsRecorder) -> None:
    _extension._warn_slow_path.__wrapped__("linear_assignment", "cpu")
    assert shown(f"SlowPathWarning: {recwarn[0].message}")


def test_operators_that_do_not_load(monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder) -> None:
    def fails(name: str) -> None:
        raise ImportError("undefined symbol")

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(importlib, "import_module", fails)
    assert not _extension._load_compiled()
    assert shown(f"SlowPathWarning: {recwarn[0].message}")


def test_reasons_of_the_build() -> None:
    setup = (ROOT / "setup.py").read_text()
    (line,) = [line for line in TEXT.splitlines() if line.startswith("raggedbev: installing without")]
    start, reason = line.split(": ", 2)[1:]
    assert start in setup and reason.removesuffix(".") in setup


@needs_mm
def test_not_registered() -> None:
    from mmengine.registry import Registry

    registry = Registry("model", scope="mmdet3d")
    with pytest.raises(KeyError) as error:
        registry.build({"type": "BatchedStreamPETRHead"})
    assert shown(f"KeyError: {error.value}")
    registry.register_module(name="HungarianAssigner3D", module=Path)
    registry._name = "task util"
    with pytest.raises(KeyError) as error:
        registry.register_module(name="HungarianAssigner3D", module=Path)
    assert shown(f"KeyError: {error.value}")


@needs_mm
def test_checkpoints_of_mmengine() -> None:
    from mmengine.logging import HistoryBuffer

    from raggedbev.mm.engine import allow_checkpoint_globals

    file = io.BytesIO()
    torch.save({"history": HistoryBuffer([1.0], [1])}, file)
    allowed = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    try:
        with pytest.raises(Exception, match="Weights only load failed") as error:
            torch.load(io.BytesIO(file.getvalue()))
        (line,) = [line for line in TEXT.splitlines() if line.startswith("WeightsUnpickler error")]
        assert line in str(error.value)
        allow_checkpoint_globals()
        assert "history" in torch.load(io.BytesIO(file.getvalue()))
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(allowed)


@needs_mm
def test_versions_that_mmdet3d_accepts() -> None:
    import mmdet3d

    (line,) = [line for line in TEXT.splitlines() if line.startswith("AssertionError: MMCV==")]
    wanted = f"Please install mmcv>={mmdet3d.mmcv_minimum_version}, <{mmdet3d.mmcv_maximum_version}."
    assert line.endswith(wanted)
    pins = (ROOT / "requirements" / "mm.txt").read_text() + (ROOT / "requirements" / "mmcv.txt").read_text()
    for package, version in re.findall(r"(mm\w+) ([\d.]+\d)[,. ]", TEXT[: TEXT.index("## Installing")]):
        assert f"{package}=={version}" in pins
