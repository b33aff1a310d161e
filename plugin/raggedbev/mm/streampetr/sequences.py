"""Frames as sequences: scene ids of frames in, their order, sequence numbers and windows out."""

from collections.abc import Sequence

import numpy as np


def sequence_flags(scene_ids: Sequence, num_splits: int) -> np.ndarray:
    """Number the sequences that frames belong to.

    A run of equal scene ids with n frames is cut into chunks of ceil(n / num_splits) frames.

    Args:
        scene_ids: one id per frame, in dataset order.
        num_splits: sequences to make of every scene.

    Returns:
        int64 array [frames]; equal numbers are consecutive and mark one sequence.

    Raises:
        ValueError: a scene cannot be cut into `num_splits` chunks of that length.
    """
    scene_ids = np.asarray(scene_ids)
    starts = np.flatnonzero(np.r_[True, scene_ids[1:] != scene_ids[:-1]][: len(scene_ids)])
    flags = np.empty(len(scene_ids), dtype=np.int64)
    for scene, (start, frames) in enumerate(zip(starts, np.diff(np.r_[starts, len(scene_ids)]), strict=True)):
        chunk = -(-frames // num_splits)
        if -(-frames // chunk) != num_splits:
            raise ValueError(
                f"seq_split_num={num_splits} cannot cut a scene of {frames} frames (it starts at frame {start}) into "
                f"equal chunks: {chunk} frames each give {-(-frames // chunk)} sequences"
            )
        flags[start : start + frames] = scene * num_splits + np.arange(frames) // chunk
    return flags


def stream_order(scene_ids: Sequence) -> np.ndarray:
    """Indices that put frames, sorted by time, scene by scene: scenes by their first frame, frames by time."""
    first_seen: dict = {}
    for scene in scene_ids:
        first_seen.setdefault(scene, len(first_seen))
    return np.argsort([first_seen[scene] for scene in scene_ids], kind="stable")


def draw_window(index: int, queue_length: int, random_length: int) -> np.ndarray:
    """Draw the frames of the window that ends at `index` (NumPy's global generator), in order.

    Before the first frame of the dataset the first frame stands in.

    Args:
        index: last frame.
        queue_length: frames to draw, with the last one.
        random_length: frames that the window leaves out.

    Returns:
        int64 [queue_length].
    """
    span = queue_length - 1 + random_length
    drawn = np.sort(np.random.permutation(span)[random_length:])
    return np.maximum(np.append(index - span + drawn, index), 0)
