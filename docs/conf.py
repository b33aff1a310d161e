"""Sphinx settings of the site: `make docs` writes build/docs/html, and fails on a warning. Needs no network."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "plugin"))

import raggedbev  # noqa: E402

project = "raggedbev"
author = "raggedbev developers"
copyright = "raggedbev developers, Apache-2.0"
version = release = raggedbev.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.mathjax", "sphinx.ext.napoleon", "sphinx_copybutton"]
exclude_patterns = ["drawing"]
html_theme = "furo"
html_title = f"raggedbev {release}"

# The pages are Markdown for a code host first: headings have the anchors that hosts give them, $...$ is mathematics.
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4

default_role = "code"  # `name` in docstrings
smartquotes = False  # "--option" and "..." are meant as they stand
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True

copybutton_prompt_text = "$ "


def escape_docstring(app: Any, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Docstrings are plain text with `names`: what reStructuredText would take for markup is escaped outside names."""
    parts = "\n".join(lines).split("`")
    outside = [re.sub(r"[*|]|(?<=\w)_(?!\w)", r"\\\g<0>", part) for part in parts[::2]]
    parts[::2] = [outside[0], *(re.sub(r"^\w", r"\\ \g<0>", part) for part in outside[1:])]  # `Name`s
    lines[:] = "`".join(parts).split("\n")


def skip_tuple_fields(app: Any, what: str, name: str, obj: object, skip: bool, options: object) -> bool | None:
    """Fields of a named tuple stand in the docstring of its class."""
    return True if type(obj).__name__ == "_tuplegetter" else None


def setup(app: Any) -> None:
    app.connect("autodoc-process-docstring", escape_docstring, priority=400)  # before napoleon
    app.connect("autodoc-skip-member", skip_tuple_fields)
