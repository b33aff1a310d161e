"""The layers of the package: the core knows nothing of the mm packages, and every operator is complete."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import raggedbev
from raggedbev import _extension

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "plugin" / "raggedbev"
CORE_FILES = sorted(path for path in PACKAGE.rglob("*.py") if "mm" not in path.relative_to(PACKAGE).parts)
CORE_MODULES = [
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__") for path in CORE_FILES
]
ALLOWED = {"torch", "numpy", "scipy", "raggedbev"} | set(sys.stdlib_module_names)
DRAWING = {"matplotlib"}  # for charts, and only inside the functions that draw them
BLOCKED = ("mmcv", "mmengine", "mmdet", "mmdet3d", "nuscenes", "cv2", "matplotlib", "PIL", "raggedbev.mm")
SCHEMAS = re.findall(r'm\.def\(\s*"(\w+)\(', (ROOT / "csrc" / "library.cpp").read_text())


def imports(tree: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module or "", node
            yield from ((f"{node.module}.{alias.name}", node) for alias in node.names)


@pytest.mark.parametrize("path", CORE_FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_core_imports_torch_numpy_scipy_only(path: Path) -> None:
    tree = ast.parse(path.read_text())
    at_import_time = {id(node) for node in tree.body}
    for name, node in imports(tree):
        top = name.split(".")[0]
        assert top in ALLOWED or (top in DRAWING and id(node) not in at_import_time), f"line {node.lineno}: {name}"
        assert not name.startswith("raggedbev.mm"), f"line {node.lineno}: the core imports its adapters ({name})"


def test_core_imports_without_any_mm_package() -> None:
    script = f"""
import importlib, sys
def is_blocked(name):
    return any(name == blocked or name.startswith(blocked + ".") for blocked in {BLOCKED!r})
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if is_blocked(name):
            raise ImportError(f"{{name}} is blocked")
sys.meta_path.insert(0, Blocker())
for name in {CORE_MODULES!r}:
    importlib.import_module(name)
loaded = [name for name in sys.modules if is_blocked(name)]
sys.exit(f"loaded: {{loaded}}" if loaded else 0)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=PACKAGE.parent)
    assert done.returncode == 0, done.stderr


# What a part may import besides itself, in the order of the data: each names earlier ones only.
LAYERS = {
    "_extension": set(),
    "geometry": set(),
    "nuscenes": set(),
    "profiling": set(),
    "ragged": {"_extension", "profiling"},
    "matching": {"_extension", "profiling", "ragged"},
    "heatmap": {"_extension", "profiling", "ragged"},
    "losses": {"_extension", "profiling", "ragged", "matching", "heatmap"},
    "workloads": {"nuscenes", "profiling", "ragged", "matching", "heatmap", "losses"},
    "": {"ragged", "matching", "heatmap", "losses"},  # raggedbev/__init__.py
    "info": {"_extension", ""},
    "mm": {"geometry", "nuscenes", "profiling", "ragged", "matching", "heatmap", "losses"},
}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def layer_of(module: str) -> str:
    return [*module.split("."), ""][1]


def imported_modules(module: str) -> set[str]:
    """Modules of this package that a module imports, anywhere in its file."""
    names = {name for name, _ in imports(ast.parse(MODULES[module].read_text()))}
    found = {name for name in names if name in MODULES}
    # `from raggedbev.ragged import ops` names the module, not also its package.
    return {name for name in found if name not in {other.rpartition(".")[0] for other in found & names}} - {module}


def test_layers_name_earlier_ones_only() -> None:
    seen: set[str] = set()
    for layer, below in LAYERS.items():
        assert below <= seen, f"{layer} names a later layer"
        seen.add(layer)
    assert {layer_of(module) for module in MODULES} == seen


@pytest.mark.parametrize("module", MODULES)
def test_imports_follow_the_data(module: str) -> None:
    """ragged -> matching, heatmap -> losses -> mm: no part imports a later one, or one beside it."""
    layer = layer_of(module)
    for target in imported_modules(module):
        allowed = layer_of(target) == layer or layer_of(target) in LAYERS[layer]
        assert allowed, f"{module} imports {target}: {layer!r} may import {sorted(LAYERS[layer])}"


def test_no_import_cycles() -> None:
    """Among modules, whether an import stands at the top of a file or in a function."""
    graph = {module: imported_modules(module) for module in MODULES}
    while free := {module for module, targets in graph.items() if not targets & graph.keys()}:
        graph = {module: targets for module, targets in graph.items() if module not in free}
    assert not graph, f"cycles among {sorted(graph)}"


def test_there_are_schemas() -> None:
    assert "draw_gaussian_heatmap" in SCHEMAS
    assert len(SCHEMAS) == len(set(SCHEMAS)) == (ROOT / "csrc" / "library.cpp").read_text().count("m.def(")


@pytest.mark.parametrize("name", SCHEMAS)
def test_operator_has_fake_kernel_reference_and_test(name: str) -> None:
    wrappers = [path for path in CORE_FILES if re.search(rf'load_operator\(\s*"{name}"', path.read_text())]
    assert len(wrappers) == 1, f"{name} must be loaded in one module, got {wrappers}"
    folder = wrappers[0].parent
    assert (folder / "reference.py").exists(), f"{folder} has no reference.py"
    tests = list((ROOT / "tests" / folder.relative_to(PACKAGE)).glob("test_*.py"))
    assert any(f"torch.ops.raggedbev.{name}" in path.read_text() for path in tests), f"no test calls {name}"
    assert any("opcheck" in path.read_text() for path in tests), f"no opcheck beside {folder}"


@pytest.mark.skipif(not _extension.COMPILED, reason="the compiled operators were not built")
@pytest.mark.parametrize("name", SCHEMAS)
def test_compiled_operator_is_registered_everywhere(name: str) -> None:
    for module in CORE_MODULES:  # each registers the operators that it loads
        importlib.import_module(module)
    assert hasattr(torch.ops.raggedbev, name)
    for key in ("CPU", "Meta", "CompositeExplicitAutograd"):
        found = torch._C._dispatch_has_kernel_for_dispatch_key(f"raggedbev::{name}", key)
        fake = torch._library.simple_registry.singleton.find(f"raggedbev::{name}").fake_impl.kernel
        assert found or (key == "Meta" and fake is not None), f"{name} has no kernel for {key}"


@pytest.mark.parametrize("name", raggedbev.__all__)
def test_public_names_exist_and_are_documented(name: str) -> None:
    member = getattr(raggedbev, name)
    assert name.startswith("__") or member.__doc__


def test_bodies_keep_the_schemas_in_one_place() -> None:
    for path in (ROOT / "csrc").rglob("*.c*"):
        if path.name != "library.cpp":
            assert "TORCH_LIBRARY(" not in path.read_text(), f"{path} defines schemas; csrc/library.cpp does"
