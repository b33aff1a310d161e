"""Every page and the README: links lead somewhere, code runs, configs build, commands are understood."""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import io
import itertools
import re
import shlex
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from markdown_pages import PAGES, ROOT, Block, Page
from programs import parser_of

HAS_MM = importlib.util.find_spec("mmdet3d") is not None
needs_mm = pytest.mark.skipif(not HAS_MM, reason="the mm packages are not installed")
every_page = pytest.mark.parametrize(
    "page", [Page(path) for path in PAGES], ids=lambda page: str(page.path.relative_to(ROOT))
)


@pytest.fixture
def registries_kept() -> Iterator[None]:
    """What code on a page registers is gone afterwards."""
    if not HAS_MM:
        yield
        return
    import mmdet.registry
    import mmdet3d.registry

    import raggedbev.mm.streampetr  # noqa: F401

    registries = [mmdet.registry.MODELS, mmdet3d.registry.MODELS]
    before = [dict(registry.module_dict) for registry in registries]
    modules = set(sys.modules)
    yield
    for registry, parts in zip(registries, before, strict=True):
        registry.module_dict.clear()
        registry.module_dict.update(parts)
    for name in set(sys.modules) - modules:
        if name.split(".")[0] == "projects":
            del sys.modules[name]


@every_page
def test_links(page: Page) -> None:
    for link in page.links:
        name, _, anchor = link.partition("#")
        target = (page.path.parent / name).resolve() if name else page.path
        assert target.exists(), link
        assert target.is_relative_to(ROOT), link
        if anchor:
            assert anchor in Page(target).anchors, link


@every_page
def test_named_files_exist(page: Page) -> None:
    for name in page.files:
        if not re.search(r"[A-Z]{4}", name):  # a placeholder
            assert any(ROOT.glob(name.rstrip("/"))), name


@every_page
def test_heading_levels(page: Page) -> None:
    """One title, and no level left out."""
    levels = [len(marks) for marks in re.findall(r"^(#+) ", page.prose, re.MULTILINE)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))


# Python -----------------------------------------------------------------------------------------------------------


def stated_shapes(block: Block) -> Iterator[tuple[ast.stmt, list[int]]]:
    """Statements that end with a comment such as `# [2, 8, 12]`, and what it says."""
    lines = block.text.splitlines()
    for statement in ast.parse(block.text).body:
        comment = re.search(r"#\s+\[([\d, ]*)\]", lines[statement.end_lineno - 1])
        if comment:
            yield statement, [int(number) for number in comment[1].split(",") if number.strip()]


def run(page: Page, block: Block, names: dict[str, object]) -> None:
    """Run a block; the values of statements with a stated shape have it."""
    stated = {statement.lineno: shape for statement, shape in stated_shapes(block)}
    for statement in ast.parse(block.text).body:
        line = statement.lineno
        ast.increment_lineno(statement, block.line - 1)
        if line not in stated or not isinstance(statement, (ast.Expr, ast.Assign)):
            exec(compile(ast.Module([statement], []), str(page.path), "exec"), names)
            continue
        value = eval(compile(ast.Expression(statement.value), str(page.path), "eval"), names)
        if isinstance(statement, ast.Assign):
            (target,) = statement.targets
            assert isinstance(target, ast.Name)
            names[target.id] = value
        assert list(value.shape) == stated[line], f"line {block.line + line - 1}"


@every_page
def test_python_blocks(page: Page, registries_kept: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """In order, in one name space."""
    blocks = [block for block in page.blocks if block.language == "python"]
    if not HAS_MM and any(re.search(r"\bmmdet|\bmmengine|raggedbev\.mm\.", block.text) for block in blocks):
        pytest.skip("the mm packages are not installed")
    names: dict[str, object] = {"__name__": "page"}
    torch.manual_seed(0)
    with contextlib.redirect_stdout(io.StringIO()):
        for block in blocks:
            run(page, block, names)


def test_a_wrong_shape_is_noticed() -> None:
    page = Page(ROOT / "README.md")
    with pytest.raises(AssertionError, match="line 7"):
        run(page, Block("python", "import torch\ntorch.zeros(2, 3)  # [3, 2]\n", 6), {})


# Configs ----------------------------------------------------------------------------------------------------------


def sides(block: Block) -> tuple[str, str]:
    """Old and new text of a diff."""
    lines = block.text.splitlines()
    old = "\n".join(line[1:] for line in lines if line[:1] != "+")
    new = "\n".join(line[1:] for line in lines if line[:1] != "-")
    return old, new


def evaluated(text: str) -> dict[str, object]:
    """The names that a shortened config sets; `...` for what is left out."""
    text = re.sub(r"\.\.\.(?=\s*\))", "**rest", textwrap.dedent(text))
    names: dict[str, object] = {"rest": {}, "point_cloud_range": [0.0] * 6, "num_stages": 2}
    exec(compile(text, "diff", "exec"), names)
    return {name: value for name, value in names.items() if name not in ("rest", "__builtins__", "point_cloud_range")}


def types_in(config: object) -> Iterator[tuple[str, str | None]]:
    """Every type, and the scope beside it."""
    if isinstance(config, dict):
        if isinstance(config.get("type"), str):
            yield config["type"], config.get("_scope_")
        for value in config.values():
            yield from types_in(value)
    elif isinstance(config, list):
        for value in config:
            yield from types_in(value)


def is_registered(name: str, scope: str | None) -> bool:
    import mmdet.registry
    import mmdet3d.registry
    import mmengine.registry

    if scope == "raggedbev.mm":
        from raggedbev.mm.registry import TASK_UTILS

        return name in TASK_UTILS.module_dict
    members = [member for module in (mmengine, mmdet, mmdet3d) for member in vars(module.registry).values()]
    return any(name in member.module_dict for member in members if isinstance(member, mmengine.registry.Registry))


DIFFS = [(page, block) for path in PAGES for page in [Page(path)] for block in page.blocks if block.language == "diff"]


@needs_mm
@pytest.mark.parametrize(("page", "block"), DIFFS, ids=str)
def test_config_diffs(page: Page, block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both sides are configs, every new type is registered, and a config that inherits merges."""
    import raggedbev.mm.streampetr  # noqa: F401

    monkeypatch.syspath_prepend(ROOT / "examples" / "petr_style")
    importlib.import_module("petr_parts")

    old, new = sides(block)
    before, after = evaluated(old), evaluated(new)
    added = set(types_in(after)) - set(types_in(before))
    assert added, "a diff that swaps nothing"
    for name, scope in added:
        assert is_registered(name, scope), name
    if "_base_" in after:
        from mmengine.config import Config

        path = tmp_path / "config.py"
        path.write_text(textwrap.dedent(new))
        merged = Config.fromfile(path)
        assert {name for name, _ in added} <= {name for name, _ in types_in(merged.to_dict())}
        assert merged.custom_imports.imports == ["raggedbev.mm"]
    else:
        assert same_but_types(before, after)


def same_but_types(before: object, after: object) -> bool:
    """Nothing was taken away, and only types differ."""
    if isinstance(before, dict) and isinstance(after, dict):
        return before.keys() <= after.keys() and all(
            key == "type" or same_but_types(value, after[key]) for key, value in before.items()
        )
    if isinstance(before, list) and isinstance(after, list):
        return len(before) == len(after) and all(map(same_but_types, before, after))
    return before == after


# Commands ---------------------------------------------------------------------------------------------------------


COMMANDS = sorted({command for page in PAGES for command in Page(page).commands})
TARGETS = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@pytest.mark.filterwarnings("ignore:'raggedbev.info' found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize("command", COMMANDS)
def test_command_is_understood(command: str, capsys: pytest.CaptureFixture) -> None:
    """Programs exist, and their parsers accept the options."""
    words = shlex.split(command.rstrip("."))
    program, arguments = words[0].removeprefix(".venv/bin/"), words[1:]
    if program == "make":
        assert {word for word in arguments if "=" not in word} <= TARGETS
    elif program.startswith(("tools/", "scripts/")):
        assert (ROOT / program).exists()
    elif program == "python" and arguments and arguments[0] != "-c":
        if arguments[0] == "-m":
            name, arguments = arguments[1], arguments[2:]
        else:
            name, arguments = arguments[0], arguments[1:]
        if name.startswith("raggedbev") or name.endswith(".py"):
            if not HAS_MM and name.startswith("tools/"):
                pytest.skip("the mm packages are not installed")
            try:
                parser_of(name).parse_args(arguments)
            except SystemExit as stop:
                assert stop.code == 0, capsys.readouterr().err
        else:
            assert importlib.util.find_spec(name) is not None, name


def test_every_config_is_in_the_table() -> None:
    text = Page(ROOT / "docs" / "guide" / "streampetr.md").text
    configs = [path.stem for path in (ROOT / "configs" / "streampetr").glob("*.py")]
    assert {name for name in configs if not name.endswith("_batched")} <= set(
        re.findall(r"`(streampetr_\w[\w-]*)`", text)
    )
    assert sorted(f"{name}_batched" for name in configs if not name.endswith("_batched")) == sorted(
        name for name in configs if name.endswith("_batched")
    )


def test_every_page_is_in_the_contents() -> None:
    """Of the site: listed in index.md, by name or by pattern."""
    docs = ROOT / "docs"
    listed = {"index"}
    for index in ("index.md", "api/index.md"):
        for toctree in re.findall(r"```{toctree}\n(.*?)```", (docs / index).read_text(encoding="utf-8"), re.DOTALL):
            for entry in re.findall(r"^[\w/*]+$", toctree, re.MULTILINE):
                folder = (docs / index).parent
                listed |= {path.relative_to(docs).with_suffix("").as_posix() for path in folder.glob(f"{entry}.md")}
    assert {path.relative_to(docs).with_suffix("").as_posix() for path in docs.rglob("*.md")} == listed
