"""Importing this lets a tool say in one sentence that a package is missing, as outside of the virtual environment.

Tools import it before the packages that they need.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import TracebackType

ACTIVATE = Path(__file__).resolve().parents[2] / ".venv" / "bin" / "activate"
PACKAGES = frozenset(
    ("PIL", "cv2", "matplotlib", "mmcv", "mmdet", "mmdet3d", "mmengine", "numpy", "raggedbev", "scipy", "torch", "tqdm")
)


def missing_package(error: BaseException) -> str | None:
    """The sentence for a package that is not installed; None for any other error."""
    if not isinstance(error, ModuleNotFoundError) or error.name not in PACKAGES:
        return None
    path = ACTIVATE.relative_to(Path.cwd()) if ACTIVATE.is_relative_to(Path.cwd()) else ACTIVATE
    first = "" if ACTIVATE.exists() else "make it with `make setup` and "
    return f"{error.name} is not installed in this Python ({sys.executable}); {first}activate the environment: . {path}"


def _show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    sentence = missing_package(error)
    if sentence is None or os.environ.get("RAGGEDBEV_DEBUG") == "1":
        sys.__excepthook__(kind, error, trace)
    else:
        print(f"error: {sentence}", file=sys.stderr)


sys.excepthook = _show
