#!/usr/bin/env python
"""How many padded lengths an epoch has, with buckets and without: as many graphs or compiled versions a loss needs.

Batches are drawn like nuScenes (30 to 60 objects a sample), or are those of an info file in a random order.

Examples:
    python benchmarks/buckets.py
    python benchmarks/buckets.py --infos data/nuscenes/nuscenes_infos_train.pkl --batch-sizes 2 8
"""

from __future__ import annotations

import argparse
import sys

import numpy as np

from raggedbev import Buckets
from raggedbev.workloads.generate import PRESETS, draw_counts
from raggedbev.workloads.infos import count_objects

BUCKETS = (None, Buckets((8,)), Buckets((16,)), Buckets((32,)))


def padded_lengths(counts: np.ndarray, batch_size: int) -> list[int]:
    """Largest count of each batch: [samples, ...] -> [samples // batch_size]."""
    whole = len(counts) // batch_size * batch_size
    return counts[:whole].reshape(whole // batch_size, -1).max(1).tolist()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--infos", help="info file whose objects are counted (default: drawn like nuScenes)")
    parser.add_argument("--samples", type=int, default=28130, help="samples of an epoch (default: nuScenes trainval)")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 2, 8], metavar="B", help="samples a batch")
    parser.add_argument("--seed", type=int, default=0, help="seed of what is drawn at random (default: %(default)s)")
    args = parser.parse_args(arguments)
    generator, sizes = np.random.default_rng(args.seed), PRESETS["streampetr_r50_704"]
    try:
        if min(args.batch_sizes) < 1 or args.samples < max(args.batch_sizes):
            raise ValueError(f"need batches of at least 1 of {args.samples} samples, got {args.batch_sizes}")
        if args.infos:
            objects, image_objects = (generator.permutation(x) for x in count_objects(args.infos, sizes))
        else:
            objects, image_objects = draw_counts(args.samples, sizes, generator)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{len(objects)} samples, {'of ' + args.infos if args.infos else 'drawn like nuScenes'}")
    print("batch  head  " + "  ".join("exact".rjust(9) if b is None else f"{b.sizes}".rjust(9) for b in BUCKETS))
    for batch_size in args.batch_sizes:
        for head, counts in (("3D", objects), ("2D", image_objects)):
            found = padded_lengths(counts, batch_size)
            lengths = [len({size if b is None else b(size) for size in found}) for b in BUCKETS]
            print(f"{batch_size:5}  {head:>4}  " + "  ".join(f"{number:9}" for number in lengths))
    return 0


if __name__ == "__main__":
    sys.exit(main())
