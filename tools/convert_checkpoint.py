#!/usr/bin/env python
"""Convert a checkpoint of the published StreamPETR code for this package.

Example:
    python tools/convert_checkpoint.py stream_petr_r50_flash_704_bs2_seq_428q_nui_60e.pth streampetr_r50.pth
"""

from __future__ import annotations

import argparse
import pickle
from pathlib import Path

import torch

from raggedbev.mm.engine import allow_checkpoint_globals, run_as_command
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
    if not args.source.is_file():
        raise FileNotFoundError(f"no checkpoint file {args.source}")
    if args.target.exists():
        raise ValueError(f"{args.target} exists already; nothing was written")
    allow_checkpoint_globals()
    try:
        checkpoint = torch.load(args.source, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError) as error:
        raise ValueError(f"{args.source} cannot be read as a checkpoint of weights: {error}") from error
    state_dict = convert_published_state_dict(checkpoint.get("state_dict", checkpoint))
    torch.save({"state_dict": state_dict, "meta": {"converted_from": args.source.name}}, args.target)
    print(f"wrote {args.target}: {len(state_dict)} weights, class channels of the 2D head in config order")


if __name__ == "__main__":
    run_as_command(main)
