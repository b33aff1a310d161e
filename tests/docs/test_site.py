"""`make docs`: the site builds without a warning, and without the network."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest
from markdown_pages import ROOT


@pytest.mark.skipif(importlib.util.find_spec("sphinx") is None, reason="Sphinx is not installed")
def test_the_site_builds(tmp_path):
    options = ["-b", "html", "-W", "--keep-going", "-q", "-d", str(tmp_path / "doctrees")]
    command = [sys.executable, "-m", "sphinx", *options, str(ROOT / "docs"), str(tmp_path / "html")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
    page = (tmp_path / "html" / "api" / "ragged.html").read_text(encoding="utf-8")
    assert "batched_indexing_access" in page and "[*batch, N, ...]" in page


def test_nothing_asks_for_the_network():
    settings = (ROOT / "docs" / "conf.py").read_text(encoding="utf-8")
    assert "intersphinx" not in settings and "http" not in settings
