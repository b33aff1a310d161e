"""What the ground truth of a batch costs the main process: packed in the workers, or tensor by tensor.

In: a batch size. Out: median times of both ways.

Example:
    python -m raggedbev.mm.transfer_timing --batch-size 8 --workers 0 1 2
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from mmdet3d.structures import Det3DDataSample, LiDARInstance3DBoxes
from mmengine.dataset import pseudo_collate
from mmengine.structures import InstanceData
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from raggedbev.mm.collate import ragged_collate

__all__ = ["ARMS", "SyntheticFrames", "measure_transfer"]

NUM_CAMERAS = 6
TIMES = ("receive_ms", "transfer_ms", "main_ms")
_CAMERA_MATRICES = ("intrinsics", "extrinsics", "lidar2img", "lidar2cam", "cam2img", "img_aug_matrix")
_POSES = ("ego_pose", "ego_pose_inv")
_SCALARS = ("timestamp", "prev_exists")


class SyntheticFrames(Dataset):
    """Frames of a nuScenes-like stream without images: what their pipeline would give for the ground truth.

    Args:
        num_frames: length.
        num_objects: 3D objects of a frame on average; each is seen by one camera.
        seed: of what is drawn.
    """

    def __init__(self, num_frames: int = 64, num_objects: int = 40, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.frames = [self._frame(rng, int(rng.integers(0, 2 * num_objects + 1))) for _ in range(num_frames)]

    @staticmethod
    def _frame(rng: np.random.Generator, count: int) -> dict[str, Any]:
        def uniform(*shape: int) -> Tensor:
            return torch.from_numpy(rng.uniform(1, 200, shape).astype(np.float32))

        def labels(number: int) -> Tensor:
            return torch.from_numpy(rng.integers(0, 10, number))

        sample = Det3DDataSample()
        sample.gt_instances_3d = InstanceData(
            bboxes_3d=LiDARInstance3DBoxes(uniform(count, 9), box_dim=9), labels_3d=labels(count)
        )
        cameras = np.bincount(rng.integers(0, NUM_CAMERAS, count), minlength=NUM_CAMERAS)
        sample.gt_instances_2d = [
            InstanceData(bboxes=uniform(n, 4), labels=labels(n), centers2d=uniform(n, 2), depths=uniform(n))
            for n in cameras.tolist()
        ]
        metas: dict[str, Any] = {key: rng.normal(size=(NUM_CAMERAS, 4, 4)) for key in _CAMERA_MATRICES}
        metas |= {key: rng.normal(size=(4, 4)) for key in _POSES}
        metas |= {"timestamp": float(rng.uniform(1.5e9, 1.6e9)), "prev_exists": 1.0, "token": f"{rng.integers(1e9):x}"}
        sample.set_metainfo(metas)
        return {"inputs": {}, "data_samples": sample}

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.frames[index]


def _move_packed(batch: dict[str, Any], device: torch.device) -> list:
    packed = batch["data_samples"]
    if device.type == "cpu":
        packed = replace(packed, buffer=packed.buffer.clone())  # the copy that a device would need
    return [packed.unpack(device)]


def _move_one_by_one(batch: dict[str, Any], device: torch.device) -> list:
    """As stock preprocessors and heads do: every tensor by itself, every matrix of every camera by itself."""

    def move(values: Any, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.as_tensor(values, dtype=dtype).to(device, copy=True)

    moved = []
    for sample in batch["data_samples"]:
        there = sample.to(device, copy=True)
        there.gt_instances_2d = [instances.to(device, copy=True) for instances in sample.gt_instances_2d]
        tensors = [move(matrix) for key in _CAMERA_MATRICES for matrix in sample.metainfo[key]]
        tensors += [move(sample.metainfo[key]) for key in _POSES]
        tensors += [move(sample.metainfo[key], torch.float64) for key in _SCALARS]
        moved.append((there, tensors))
    return moved


ARMS: dict[str, tuple[Callable, Callable[[dict[str, Any], torch.device], list]]] = {
    "pseudo_collate": (pseudo_collate, _move_one_by_one),
    "ragged_collate": (ragged_collate, _move_packed),
}


def measure_transfer(
    batch_size: int = 8,
    repeats: int = 20,
    num_workers: int = 1,
    num_objects: int = 40,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """Main-process time per batch for collation and transfer of ground truth, matrices and times; no images.

    Batches of both arms come from dataloaders in turn. The time is the processor time of the main process, with all of
    its threads: receiving a batch (unpickling and mapping what a worker sent; without workers the collation itself),
    then copying it. On the CPU every copy is made as if there were a device.

    Args:
        batch_size: B.
        repeats: batches of each arm that are timed; three more come first.
        num_workers: of each dataloader.
        num_objects: 3D objects of a frame on average.
        device: where the data goes.

    Returns:
        'batch_size', 'num_workers', 'device', 'torch', 'tensors' (what the stock way copies), 'arms': by name medians
        'receive_ms', 'transfer_ms' and 'main_ms' (of their sum); 'speedup': of 'main_ms' over 'pseudo_collate'.
    """
    device = torch.device(device)
    dataset = SyntheticFrames(max(2 * batch_size, 16), num_objects)
    total = batch_size * (repeats + 3)
    order = [index % len(dataset) for index in range(total)]
    streams: dict[str, Iterator] = {}
    for name, (collate, _) in ARMS.items():
        loader = DataLoader(
            dataset, batch_size, sampler=order, num_workers=num_workers, collate_fn=collate,
            pin_memory=device.type == "cuda",
        )  # fmt: skip
        streams[name] = iter(loader)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ARMS}
    for _ in range(repeats + 3):
        for name, (_, move) in ARMS.items():
            start = time.process_time()
            batch = next(streams[name])
            received = time.process_time()
            kept = move(batch, device)
            times[name].append((received - start, time.process_time() - received))
            del batch, kept
    arms = {}
    for name, pairs in times.items():
        timed = pairs[3:]
        columns = [a for a, _ in timed], [b for _, b in timed], [a + b for a, b in timed]
        arms[name] = {key: 1e3 * statistics.median(values) for key, values in zip(TIMES, columns, strict=True)}
    return {
        "batch_size": batch_size,
        "num_workers": num_workers,
        "device": str(device),
        "torch": torch.__version__,
        "tensors": batch_size * _tensors_per_frame(),
        "arms": arms,
        "speedup": arms["pseudo_collate"]["main_ms"] / arms["ragged_collate"]["main_ms"],
    }


def _tensors_per_frame() -> int:
    """Boxes and labels, four fields per camera, matrices of every camera, poses and scalars."""
    return 2 + 4 * NUM_CAMERAS + len(_CAMERA_MATRICES) * NUM_CAMERAS + len(_POSES) + len(_SCALARS)


def main() -> None:
    """Print the times as a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=8, help="frames of a batch (default: 8)")
    parser.add_argument("--repeats", type=int, default=20, help="batches that are timed (default: 20)")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1], help="data workers (default: 0 1)")
    parser.add_argument("--device", default="cpu", help="where the data goes (default: cpu)")
    args = parser.parse_args()
    print("workers  collate_fn      receive ms  transfer ms  main process ms")
    for workers in args.workers:
        found = measure_transfer(args.batch_size, args.repeats, workers, device=args.device)
        for name, times in found["arms"].items():
            print(f"{workers:7}  {name:14}  " + "  ".join(f"{times[key]:11.2f}" for key in TIMES))
        print(f"{'':7}  {found['tensors']} tensors: {found['speedup']:.1f}x")


if __name__ == "__main__":
    main()
