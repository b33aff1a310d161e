"""What is installed and which code runs where: `python -m raggedbev.info`, the first thing to put into a bug report.

In: this Python environment. Out: versions, compiled operators and their devices, and the parts that mm packages know.
Works without the compiled operators and without any mm package.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import importlib.util
import os
import pkgutil
import platform
import sys
import textwrap
import warnings
from pathlib import Path

import torch

import raggedbev
from raggedbev import _extension

__all__ = ["compiled_operators", "cuda_architectures", "main", "versions"]

MM_PACKAGES = ("mmengine", "mmcv", "mmdet", "mmdet3d")
DEVICES = ("CPU", "CUDA")  # dispatch keys that operators have kernels for
CORE = ("ragged", "matching", "heatmap", "losses")


def versions() -> dict[str, str | None]:
    """Installed version of each package that this one works with; None where it is not installed."""
    found: dict[str, str | None] = {"torch": torch.__version__}
    for name in ("numpy", "scipy", "simplejpeg", *MM_PACKAGES):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def compiled_operators() -> dict[str, tuple[str, ...]]:
    """The dispatch keys ("CPU", "CUDA") that each compiled operator has kernels for; empty where none is compiled."""
    for part in CORE:  # importing a module registers its operators
        package = importlib.import_module(f"raggedbev.{part}")
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)
    prefix = f"{_extension.NAMESPACE}::"
    names = sorted(name for name in torch._C._dispatch_get_all_op_names() if name.startswith(prefix))
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    found = {name.removeprefix(prefix): tuple(key for key in DEVICES if has_kernel(name, key)) for name in names}
    return {name: keys for name, keys in found.items() if keys}  # others are operators in Python


def cuda_architectures() -> tuple[int, ...]:
    """Compute capabilities that the operators were compiled for, as 80 for 8.0; empty for a build without CUDA."""
    if not _extension.COMPILED:
        return ()
    return getattr(importlib.import_module("raggedbev._C"), "cuda_architectures", ())


def _versions_text() -> str:
    lines = [
        f"raggedbev {raggedbev.__version__} in {Path(raggedbev.__file__).parent}",
        f"Python {platform.python_version()} on {platform.system()} {platform.machine()}",
    ]
    return "\n".join([*lines, *(f"{name} {version or 'is not installed'}" for name, version in versions().items())])


def _devices_text() -> str:
    lines = [f"cpu: {torch.get_num_threads()} threads"]
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            device = torch.cuda.get_device_properties(index)
            lines.append(f"cuda:{index}: {device.name}, sm_{device.major}{device.minor}")
    else:
        why = "torch is a build without CUDA" if torch.version.cuda is None else "torch sees no GPU"
        lines.append(f"cuda: none ({why})")
    debug = os.environ.get("RAGGEDBEV_DEBUG", "0")
    return "\n".join([*lines, f"RAGGEDBEV_DEBUG={debug}"])


def _operators_text() -> str:
    if not _extension.COMPILED:
        built = importlib.util.find_spec("raggedbev._C") is not None
        why = "they were built, but do not load with this torch" if built else "they were not built"
        return f"None: {why}. Every operator runs as plain torch: same results, slower."
    architectures = ", ".join(f"sm_{number}" for number in cuda_architectures()) or "none (built for the CPU only)"
    lines = [
        str(importlib.import_module("raggedbev._C").__file__),
        f"CUDA architectures: {architectures}",
        f"{'operator':<28}" + "".join(f"{key:<14}" for key in DEVICES).rstrip(),
    ]
    for name, keys in compiled_operators().items():
        paths = "".join(f"{'compiled' if key in keys else 'plain torch':<14}" for key in DEVICES)
        lines.append(f"{name:<28}{paths}".rstrip())
    return "\n".join(lines)


def _parts_text() -> str:
    missing = [name for name in MM_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        return f"None: {', '.join(missing)} not installed. The core works without."
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the mm packages, on their way in
        try:
            parts = importlib.import_module("raggedbev.mm.parts").registered_parts()
        except (ImportError, AssertionError, AttributeError) as error:  # how they refuse each other's versions
            return f"None: the mm packages do not import ({type(error).__name__}: {error})"
    width = {"width": 110, "initial_indent": "  ", "subsequent_indent": "  "}
    return "\n".join(f"{place}\n{textwrap.fill(', '.join(names), **width)}" for place, names in parts.items())  # type: ignore[arg-type]


def main(arguments: list[str] | None = None) -> int:
    """Print everything."""
    parser = argparse.ArgumentParser(
        prog="python -m raggedbev.info",
        description="Print versions, compiled operators, devices and the parts registered with mm packages.",
        epilog="Example: python -m raggedbev.info --no-mm",
    )
    parser.add_argument("--no-mm", action="store_true", help="do not import the mm packages, which takes seconds")
    args = parser.parse_args(arguments)
    sections = [("Versions", _versions_text), ("Devices", _devices_text), ("Compiled operators", _operators_text)]
    if not args.no_mm:
        sections.append(("Registered with mm packages", _parts_text))
    for title, text in sections:
        print(f"{title}\n{textwrap.indent(text(), '  ')}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
