"""The page of the ragged batch and its pictures: complete, and what the code gives."""

from __future__ import annotations

import inspect
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import panels
import pictures
import pytest
import ragged_pictures
from markdown_pages import PAGES, Page

import raggedbev

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "ops" / "ragged.md").read_text(encoding="utf-8")

every_picture = pytest.mark.parametrize("name", pictures.PICTURES)


def texts(svg):
    root = ET.fromstring(svg)
    return [node.text for node in root.iter("{http://www.w3.org/2000/svg}text")]


def test_every_public_name_has_a_picture():
    assert sorted(ragged_pictures.PICTURES) == sorted(raggedbev.ragged.__all__)


@pytest.mark.parametrize("name", sorted(set(raggedbev.ragged.__all__) - {"RaggedBatch"}))
def test_every_helper_has_a_page(name):
    """With picture, equation, arguments, shapes, edge cases and cost."""
    page = (DOCS / "ops" / "ragged" / f"{name}.md").read_text(encoding="utf-8")
    assert page.startswith(f"# {name}\n") and "$$" in page and "```python" in page
    assert f"](../../pictures/{name}.svg)" in page
    assert re.findall("^## (.*)", page, re.MULTILINE) == ["Shapes", "Edge cases", "Cost"]
    (call,) = re.findall(rf"^`{name}\((.*)\)`$", page, re.MULTILINE)
    parameters = inspect.signature(getattr(raggedbev, name)).parameters.values()
    assert call == ", ".join(str(parameter.replace(annotation=inspect.Parameter.empty)) for parameter in parameters)
    assert f"(ragged/{name}.md)" in PAGE


def test_no_picture_is_left_over():
    assert sorted(path.stem for path in pictures.FOLDER.glob("*.svg")) == sorted(pictures.PICTURES)


@every_picture
def test_every_picture_is_shown(name):
    """With an alternative text."""
    shown = [re.findall(rf"!\[([^\]]+)\]\([./]*pictures/{name}\.svg\)", Page(path).prose) for path in PAGES]
    alternatives = [text for found in shown for text in found]
    assert alternatives and all(len(text) > 20 for text in alternatives)


def test_the_page_lists_every_member():
    table = PAGE[PAGE.index("## Members of RaggedBatch") : PAGE.index("## Helpers")]
    plumbing = {"folded", "from_layout", "layout"}  # for the package itself
    members = {name for name in dir(raggedbev.RaggedBatch) if not name.startswith("_")} - plumbing
    assert members <= set(re.findall(r"`(\w+)", table))


@every_picture
def test_drawing_again_gives_the_same_bytes(name):
    committed = (pictures.FOLDER / f"{name}.svg").read_text(encoding="utf-8")
    assert pictures.PICTURES[name]() == committed


@pytest.mark.parametrize("name", ragged_pictures.PICTURES)
def test_values_come_from_the_helper(name, monkeypatch):
    """A helper that is replaced cannot be drawn: nothing in a picture is typed in."""

    def gone(*args, **kwargs):
        raise RuntimeError("replaced")

    monkeypatch.setattr(ragged_pictures, "combine_data" if name == "RaggedBatch" else name, gone)
    with pytest.raises(RuntimeError, match="replaced"):
        ragged_pictures.PICTURES[name]()


@every_picture
def test_text_stays_inside_the_picture(name):
    """Every text starts inside, and ends inside by the width of a monospace letter."""
    root = ET.fromstring(pictures.PICTURES[name]())
    width, height = int(root.get("width")), int(root.get("height"))
    for node in root.iter("{http://www.w3.org/2000/svg}text"):
        style = (node.get("class") or "").split()
        size = {"call": 15, "note": 11, "label": 12, "sign": 17}.get(style[0] if style else "", 13)
        long = panels.text_width(node.text, size)
        share = {"label": 1.0, "cell": 0.5, "sign": 0.5}.get(style[0] if style else "", 0.0)
        left = int(node.get("x")) - share * long
        assert left >= 0 and left + long <= width and 0 < int(node.get("y")) < height, node.text


def test_known_values():
    """The numbers that the page explains in words."""
    sums = texts((pictures.FOLDER / "sum_over_targets.svg").read_text(encoding="utf-8"))
    assert sums[-4:-1] == ["21", "0", "93"]
    access = texts((pictures.FOLDER / "batched_indexing_access.svg").read_text(encoding="utf-8"))
    assert [access[access.index("out") + 2 :][k] for k in (0, 1, 2)] == ["13", "10", "-1"]


def test_check_finds_a_stale_picture(tmp_path, capsys):
    assert pictures.main(["--out", str(tmp_path)]) == 0
    assert pictures.main(["--check", "--out", str(tmp_path)]) == 0
    changed = tmp_path / "combine_data.svg"
    changed.write_text(changed.read_text().replace(">32<", ">33<"))
    (tmp_path / "sum_over_targets.svg").unlink()
    assert pictures.main(["--check", "--out", str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert "combine_data.svg" in printed and "sum_over_targets.svg" in printed and "make docs" in printed
