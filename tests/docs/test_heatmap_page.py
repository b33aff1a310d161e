"""The page of the heatmaps: every option and every public name is on it."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import raggedbev

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "ops" / "heatmap.md").read_text(encoding="utf-8")


def test_every_option_is_explained():
    table = PAGE[PAGE.index("## The operator") : PAGE.index("## Radii")]
    parameters = inspect.signature(raggedbev.draw_gaussian_heatmap).parameters.values()
    options = {parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY} | {"map_index"}
    assert options <= set(re.findall(r"`(\w+)`", table))


def test_every_public_name_is_on_the_page():
    helpers = {"BevGrid", "CenterHeadConfig", "CenterHeadTargets", "CenterNetTargets"}
    assert set(raggedbev.heatmap.__all__) - helpers <= set(re.findall(r"\w+", PAGE))
