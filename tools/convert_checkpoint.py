#!/usr/bin/env python
"""Convert a checkpoint of the published StreamPETR code for this package.

Example:
    python tools/convert_checkpoint.py stream_petr_r50_flash_704_bs2_seq_428q_nui_60e.pth streampetr_r50.pth
"""

from __future__ import annotations

import argparse
from pathlib import Path

import shared.environment  # noqa: F401

import torch

from raggedbev.mm.engine import require_checkpoint, run_as_command
from raggedbev.mm.streampetr.checkpoint import convert_published_state_dict


def parse_args() -> argparse.Namespace:
    """Source and target file."""
    parser = argparse.ArgumentParser(description=__doc__.strip(), formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="published checkpoint")
    parser.add_argument("target", type=Path, help="file to write; must not exist")
    return parser.parse_args()


def main() -> None:
    """Read, convert, write."""
    args = parse_args()
    if args.target.exists():
        raise ValueError(f"{args.target} exists already; nothing was written")
    require_checkpoint(str(args.source))
    checkpoint = torch.load(args.source, map_location="cpu", weights_only=True)
    state_dict = convert_published_state_dict(checkpoint.get("state_dict", checkpoint))
    partial = args.target.with_name(args.target.name + ".partial")
    torch.save({"state_dict": state_dict, "meta": {"converted_from": args.source.name}}, partial)
    partial.replace(args.target)
    print(f"wrote {args.target}: {len(state_dict)} weights, class channels of the 2D head in config order")


if __name__ == "__main__":
    run_as_command(main)
