#!/usr/bin/env python
"""Train a 3D detector from an mm config.

Example:
    python tools/train.py configs/streampetr/streampetr_r18-352x128_1xb2-demo_nuscenes-mini_batched.py
"""

from __future__ import annotations

import argparse

import shared.environment  # noqa: F401

import torch

from raggedbev.mm.engine import ToolRunner, add_common_arguments, load_config, require_checkpoint, run_as_command


def parse_args() -> argparse.Namespace:
    """The flags of mmdet3d's own tool, with the same meaning."""
    parser = argparse.ArgumentParser(description=__doc__.strip(), formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="config file")
    parser.add_argument("--amp", action="store_true", help="automatic mixed precision (CUDA)")
    parser.add_argument(
        "--sync_bn",
        choices=["none", "torch", "mmcv"],
        default="none",
        help="which synchronised batch norm to convert to",
    )
    parser.add_argument("--auto-scale-lr", action="store_true", help="scale the learning rate to the total batch size")
    parser.add_argument(
        "--resume",
        nargs="?",
        const="auto",
        help="continue from this checkpoint, or from the latest one of the work directory; the data stream goes on "
        "where it stopped",
    )
    add_common_arguments(parser)
    return parser.parse_args()


def main() -> None:
    """Build the runner that the command line describes, and train."""
    args = parse_args()
    config = load_config(args)
    if args.amp and config.optim_wrapper.type != "AmpOptimWrapper":
        if config.optim_wrapper.type != "OptimWrapper":
            raise ValueError(f"--amp needs an optim_wrapper of type OptimWrapper, got {config.optim_wrapper.type}")
        config.optim_wrapper.type = "AmpOptimWrapper"
        config.optim_wrapper.loss_scale = "dynamic"
    if config.optim_wrapper.type == "AmpOptimWrapper" and not torch.cuda.is_available():
        raise ValueError(
            "mixed precision (AmpOptimWrapper) needs a CUDA device; "
            "on CPUs use --cfg-options optim_wrapper.type=OptimWrapper model.image_dtype=bfloat16"
        )
    if args.sync_bn != "none":
        config.sync_bn = args.sync_bn
    if args.auto_scale_lr:
        if "base_batch_size" not in config.get("auto_scale_lr", {}):
            raise ValueError("--auto-scale-lr needs auto_scale_lr.base_batch_size in the config")
        config.auto_scale_lr.enable = True
    if args.resume is not None:
        config.resume = True
        config.load_from = None if args.resume == "auto" else args.resume
    if config.load_from:
        require_checkpoint(config.load_from)

    ToolRunner.from_cfg(config).train()


if __name__ == "__main__":
    run_as_command(main)
