"""The page of the heatmaps: its code runs, its links lead somewhere, its arguments exist."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import raggedbev

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "ops" / "heatmap.md").read_text(encoding="utf-8")


def test_the_code_on_the_page_runs(capsys):
    code = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)[0]
    shapes = []
    draw = re.sub(r"^(draw_gaussian_heatmap\(.*\))", r"shapes.append(\1.shape)", code, flags=re.MULTILINE)
    exec(draw, {"shapes": shapes})
    stated = [tuple(map(int, text.split(", "))) for text in re.findall(r"# \[([\d, ]+)\]", code)]
    assert [tuple(shape) for shape in shapes] == stated


def test_links_and_files_exist():
    for target in re.findall(r"\]\(([^)#]+)\)", PAGE):
        assert (DOCS / "ops" / target).exists(), target
    for path in re.findall(r"(?:configs|tools)/[\w./-]+\.py", PAGE):
        assert (DOCS.parent / path).exists(), path


def test_every_option_is_explained():
    table = PAGE[PAGE.index("## The operator") : PAGE.index("## Radii")]
    parameters = inspect.signature(raggedbev.draw_gaussian_heatmap).parameters.values()
    options = {parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY} | {"map_index"}
    assert options <= set(re.findall(r"`(\w+)`", table))


def test_every_public_name_is_on_the_page():
    helpers = {"BevGrid", "CenterHeadConfig", "CenterHeadTargets", "CenterNetTargets"}
    assert set(raggedbev.heatmap.__all__) - helpers <= set(re.findall(r"\w+", PAGE))
