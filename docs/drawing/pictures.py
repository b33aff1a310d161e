#!/usr/bin/env python
"""Draw the pictures of the documentation: small inputs in, one SVG per picture out.

    python docs/drawing/pictures.py            # writes docs/pictures/*.svg
    python docs/drawing/pictures.py --check    # writes nothing; exits with 1 when a picture is not what the code gives

Every value in a picture comes out of a call of what it explains, so a picture cannot say what the code does not do.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import flow_pictures
import heatmap_pictures
import loss_pictures
import matching_pictures
import ragged_pictures
from panels import to_svg

FOLDER = Path(__file__).resolve().parent.parent / "pictures"
PANELS = ragged_pictures.PICTURES | matching_pictures.PICTURES | heatmap_pictures.PICTURES | loss_pictures.PICTURES
PICTURES: dict[str, Callable[[], str]] = {
    name: (lambda draw=draw: to_svg(draw())) for name, draw in PANELS.items()
} | flow_pictures.PICTURES
"""SVG of each picture, by the name of its file."""


def main(arguments: list[str] | None = None) -> int:
    """Writes or checks all pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the files instead of writing them")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder (default: docs/pictures)")
    args = parser.parse_args(arguments)
    stale = 0
    args.out.mkdir(parents=True, exist_ok=True)
    for name, draw in PICTURES.items():
        path, svg = args.out / f"{name}.svg", draw()
        if not args.check:
            path.write_text(svg, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != svg:
            print(f"{path} is not what the code gives; `make docs` draws it anew")
            stale += 1
    if not args.check:
        print(f"{len(PICTURES)} pictures in {args.out}")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
