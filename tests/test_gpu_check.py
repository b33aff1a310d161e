"""`make gpu-check` on a machine without a GPU: one sentence, and nothing is built."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu(tmp_path):
    done = subprocess.run(
        [ROOT / "scripts" / "gpu_check.sh", tmp_path / "out"],
        env={"PATH": "/usr/bin:/bin", "PYTHON": sys.executable},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("gpu-check needs a GPU that torch sees") and done.stderr.count("\n") == 1
    assert list((tmp_path / "out").iterdir()) == []
