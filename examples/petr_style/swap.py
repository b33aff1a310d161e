#!/usr/bin/env python
"""Swap the batched parts into a config: builds petr_style.py and petr_style_batched.py, and compares what they give.

    python examples/petr_style/swap.py
    python examples/petr_style/swap.py --batch-size 8 --objects 60

Prints where the two configs differ, the losses of both heads for the same weights and batch, the largest difference of
losses and gradients, and the time of each loss. Exits with 1 when they differ by more than rounding. That can happen
by a tie: L1 costs often stay the same when two queries swap their objects, and then either assignment is right.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import torch
from mmdet3d.registry import MODELS
from mmengine.config import Config
from torch import Tensor

HERE = Path(__file__).resolve().parent
TOLERANCE = 1e-10  # relative, in float64: there rounding does not turn a near tie of two assignments


def load(name: str) -> Config:
    """A config of this folder, with the parts beside it on the path."""
    if str(HERE) not in sys.path:
        sys.path.insert(0, str(HERE))
    return Config.fromfile(HERE / name)


def differences(old: Any, new: Any, place: str = "") -> list[str]:
    """One line per value that differs."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [*old, *(key for key in new if key not in old)]
        return [line for key in keys for line in differences(old.get(key), new.get(key), f"{place}.{key}".strip("."))]
    return [] if old == new else [f"{place}: {old!r} -> {new!r}"]


def make_batch(size: int, objects: int, generator: torch.Generator) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Tokens [B, 50, 64], and per sample boxes [G, 9] (metres, radians, metres per second) and labels [G]."""
    scale = torch.tensor([80.0, 80.0, 4.0, 5.0, 3.0, 2.0, 6.28, 4.0, 4.0])
    offset = torch.tensor([-40.0, -40.0, -2.0, 0.5, 0.5, 0.5, -3.14, -2.0, -2.0])
    counts = torch.randint(0, objects + 1, (size,), generator=generator).tolist()
    boxes = [(torch.rand(count, 9, generator=generator) * scale + offset).double() for count in counts]
    labels = [torch.randint(0, 10, (count,), generator=generator) for count in counts]
    return torch.randn(size, 50, 64, generator=generator).double(), boxes, labels


def losses_and_gradients(head: Any, batch: tuple) -> tuple[dict[str, Tensor], list[Tensor], float]:
    """Losses by key, gradients of the weights, and the seconds that the loss took forward."""
    logits, boxes = head(batch[0])
    begin = time.perf_counter()
    losses = head.loss_by_feat(logits, boxes, *batch[1:])
    seconds = time.perf_counter() - begin
    return losses, torch.autograd.grad(sum(losses.values()), list(head.parameters())), seconds


def main(arguments: list[str] | None = None) -> int:
    """Compare the twins; 0 when they agree."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=4, help="samples (default: 4)")
    parser.add_argument("--objects", type=int, default=30, help="most objects of a sample (default: 30)")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and data (default: 0)")
    args = parser.parse_args(arguments)

    looped, batched = load("petr_style.py"), load("petr_style_batched.py")
    print("differences of the configs:")
    print("\n".join(f"  {line}" for line in differences(looped.to_dict(), batched.to_dict())))
    torch.manual_seed(args.seed)
    heads = [MODELS.build(config.model).double() for config in (looped, batched)]
    heads[1].load_state_dict(heads[0].state_dict())
    batch = make_batch(args.batch_size, args.objects, torch.Generator().manual_seed(args.seed))
    for head in heads:
        losses_and_gradients(head, batch)  # first calls load code
    (theirs, their_gradients, slow), (ours, our_gradients, fast) = (losses_and_gradients(h, batch) for h in heads)

    print(f"\n{'loss':<16}{'looped':>12}{'batched':>12}")
    for key, value in theirs.items():
        print(f"{key:<16}{value.item():>12.6f}{ours[key].item():>12.6f}")
    pairs = [*((ours[key], theirs[key]) for key in theirs), *zip(our_gradients, their_gradients, strict=True)]
    far = max(((a - b).abs().max() / b.abs().max().clamp(min=1e-12)).item() for a, b in pairs)
    print(f"{'forward':<16}{1e3 * slow:>9.2f} ms{1e3 * fast:>9.2f} ms")
    print(f"\n{'agree' if far <= TOLERANCE else 'DISAGREE'}: losses and gradients differ by at most {far:.1e}")
    return 0 if far <= TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main())
