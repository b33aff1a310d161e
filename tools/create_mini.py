#!/usr/bin/env python3
"""Makes a small synthetic data set in the nuScenes format (version v1.0-mini).

    python tools/create_mini.py --out data/mini

Ten scenes of twelve keyframes: six cameras, lidar, boxes of all ten detection classes. The scene names are those of
the devkit's mini split; of fewer than ten scenes the last fifth, at least one, is for validation (a single scene is
for training). The same seed gives the same bytes, whatever the number of workers.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import shared.environment  # noqa: F401

from mini.build import make_dataset, summary


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="data root; an earlier one of this tool is replaced")
    parser.add_argument("--scenes", type=int, default=10, help="number of scenes, 1 to 10 (default: 10)")
    parser.add_argument("--frames", type=int, default=12, help="keyframes per scene, 2 to 80, at 2 Hz (default: 12)")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything random (default: 0)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: one per core)")
    return parser.parse_args(arguments)


def main() -> int:
    """Exit status 0, 1 with one sentence on stderr, or 130 when interrupted."""
    options = parse_arguments()
    try:
        made = make_dataset(options.out, options.scenes, options.frames, options.seed, options.workers)
    except (ValueError, OSError) as error:
        print(f"create_mini: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("create_mini: interrupted, nothing is left behind", file=sys.stderr)
        return 130
    print(f"{options.out}: {'made' if made else 'already there, nothing to do'}")
    print(summary(options.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
