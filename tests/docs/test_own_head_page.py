"""The page about a head of one's own shows the loss of the example, which is trained and compared in its tests."""

from __future__ import annotations

import ast

from markdown_pages import ROOT, Page


def function_source(text: str, name: str) -> str:
    """The function without its annotations, in one form."""
    (function,) = [node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef) and node.name == name]
    function.returns = None
    for argument in function.args.args:
        argument.annotation = None
    return ast.unparse(function)


def test_the_page_shows_the_loss_of_the_example():
    page = Page(ROOT / "docs" / "guide" / "own_head.md")
    shown = next(block.text for block in page.blocks if block.language == "python")
    example = (ROOT / "examples" / "own_detr_head.py").read_text(encoding="utf-8")
    assert function_source(shown, "batched_loss") == function_source(example, "batched_loss")


def test_the_loss_has_some_thirty_lines():
    page = Page(ROOT / "docs" / "guide" / "own_head.md")
    shown = next(block.text for block in page.blocks if block.language == "python")
    assert len(shown[shown.index("def batched_loss") :].splitlines()) <= 30
