"""Memory queue: the best queries of past frames, kept in the global frame and moved into each new ego frame.

In: ego poses, time, whether the sample continues its scene, and the queries of the last decoder layer. Out: past
queries in the ego frame of today. All shapes are fixed by the configuration and the batch size, and nothing here
depends on values on the host, so the state can live in static buffers.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor


def rigid_product(a: Tensor, b: Tensor) -> Tensor:
    """Product of 4x4 matrices ``[..., 4, 4]`` in full precision: elementwise, so never in TF32.

    Absolute poses are about 1e3 metres, and the motion encoding multiplies their differences by up to 32.
    """
    return (a.unsqueeze(-1) * b.unsqueeze(-3)).sum(-2)


def rigid_transform(matrix: Tensor, points: Tensor) -> Tensor:
    """Points ``[..., 3]`` (metres) moved by matrices ``[..., 4, 4]``, in full precision."""
    return (matrix[..., :3, :3] * points.unsqueeze(-2)).sum(-1) + matrix[..., :3, 3]


@dataclass(frozen=True)
class MemoryState:
    """R remembered queries of each of B samples.

    Attributes:
        embedding: Output of the last decoder layer ``[B, R, C]``.
        reference_point: Centres ``[B, R, 3]`` in metres.
        timestamp: ``[B, R, 1]`` float64 seconds: age in a frame, minus the absolute time between frames.
        egopose: Pose of the ego at that time ``[B, R, 4, 4]``.
        velo: Velocities ``[B, R, 2]`` in m/s, in the ego frame of that time.
        valid: ``[B]`` float, 0 where the sample has no state yet.
    """

    embedding: Tensor
    reference_point: Tensor
    timestamp: Tensor
    egopose: Tensor
    velo: Tensor
    valid: Tensor

    @classmethod
    def empty(cls, batch_size: int, length: int, embed_dims: int, like: Tensor) -> "MemoryState":
        """A state that holds nothing, on the device and of the floating type of ``like``."""
        return cls(
            embedding=like.new_zeros(batch_size, length, embed_dims),
            reference_point=like.new_zeros(batch_size, length, 3),
            timestamp=like.new_zeros(batch_size, length, 1, dtype=torch.float64),
            egopose=like.new_zeros(batch_size, length, 4, 4),
            velo=like.new_zeros(batch_size, length, 2),
            valid=like.new_zeros(batch_size),
        )

    def rows(self, start: int, stop: int | None = None) -> "MemoryState":
        """The queries from ``start`` up to ``stop``."""
        return self._map(lambda x: x[:, start:stop])

    def _map(self, function) -> "MemoryState":
        changed = {f.name: function(getattr(self, f.name)) for f in fields(self) if f.name != "valid"}
        return MemoryState(**changed, valid=self.valid)


class MemoryQueue:
    """First-in, first-out queue of queries over the frames of each sample of a batch.

    Between frames the state has ``memory_len + topk`` rows; a frame sees the first ``memory_len``. It belongs to one
    process and is not part of a checkpoint.

    Args:
        memory_len: Rows M that a frame sees.
        topk: Queries K taken over from each frame.
        num_propagated: Rows P that join the queries of the next frame.
        embed_dims: Width C of a query.
    """

    def __init__(self, memory_len: int, topk: int, num_propagated: int, embed_dims: int) -> None:
        if not 0 <= num_propagated <= memory_len:
            raise ValueError(f"num_propagated must lie in 0..memory_len={memory_len}, got {num_propagated}")
        self.memory_len = memory_len
        self.topk = topk
        self.num_propagated = num_propagated
        self.embed_dims = embed_dims
        self.state: MemoryState | None = None

    def reset(self) -> None:
        """Forget everything: the next frame of every sample starts anew, whatever its ``prev_exists`` says."""
        self.state = None

    def before_frame(self, frame: Mapping[str, Tensor], pseudo_points: Tensor) -> MemoryState:
        """The memory as the frame sees it.

        Samples that start a scene, and those without state, see P pseudo queries with the identity pose followed by
        zeros. The zeros are attended to like real entries and age like them.

        Args:
            frame: ``ego_pose_inv [B, 4, 4]``, ``timestamp [B]`` float64 seconds, ``prev_exists [B]`` 0 or 1.
            pseudo_points: ``[P, 3]`` metres.

        Returns:
            State of M rows in the ego frame of ``frame``; timestamps are ages in seconds.
        """
        batch_size = len(frame["prev_exists"])
        state = self.state
        if state is None or len(state.valid) != batch_size:
            length = self.memory_len + self.topk
            state = MemoryState.empty(batch_size, length, self.embed_dims, like=pseudo_points)
        moved = MemoryState(
            embedding=state.embedding,
            reference_point=rigid_transform(frame["ego_pose_inv"][:, None], state.reference_point),
            timestamp=state.timestamp + frame["timestamp"][:, None, None],
            egopose=rigid_product(frame["ego_pose_inv"][:, None], state.egopose),
            velo=state.velo,
            valid=state.valid,
        ).rows(0, self.memory_len)
        alive = (frame["prev_exists"] > 0) & (state.valid > 0)
        return self._start_scenes(moved, alive, pseudo_points)

    def _start_scenes(self, state: MemoryState, alive: Tensor, pseudo_points: Tensor) -> MemoryState:
        """Replace the state where ``alive [B]`` is False; a select, so that NaN in the old state ends there too."""
        fresh = MemoryState.empty(len(alive), self.memory_len, self.embed_dims, like=pseudo_points)
        fresh.reference_point[:, : self.num_propagated] = pseudo_points
        identity = torch.eye(4, dtype=fresh.egopose.dtype, device=fresh.egopose.device)
        fresh.egopose[:, : self.num_propagated] = identity

        def select(name: str) -> Tensor:
            old, new = getattr(state, name), getattr(fresh, name)
            return torch.where(alive.view(-1, *[1] * (old.dim() - 1)), old, new)

        names = ("embedding", "reference_point", "timestamp", "egopose", "velo")
        return MemoryState(**{name: select(name) for name in names}, valid=state.valid)

    def after_frame(
        self, seen: MemoryState, embedding: Tensor, centers: Tensor, velo: Tensor, scores: Tensor, frame: Mapping
    ) -> None:
        """Put the K best queries of a frame in front and move everything to the global frame.

        Args:
            seen: What :meth:`before_frame` gave for this frame.
            embedding: Last decoder output ``[B, T, C]``.
            centers: Predicted centres ``[B, T, 3]`` in metres.
            velo: Predicted velocities ``[B, T, 2]`` in m/s.
            scores: Best class score of each query ``[B, T]``.
            frame: ``ego_pose [B, 4, 4]`` and ``timestamp [B]`` float64 seconds.
        """
        best = scores.detach().topk(self.topk, dim=1).indices  # [B, K], best first
        new = MemoryState.empty(len(scores), self.topk, self.embed_dims, like=seen.embedding)
        identity = torch.eye(4, dtype=seen.egopose.dtype, device=best.device).expand(*best.shape, 4, 4)

        def prepend(rows: Tensor, old: Tensor) -> Tensor:
            return torch.cat([rows, old], dim=1)

        def pick(values: Tensor) -> Tensor:
            return values.detach().gather(1, best.unsqueeze(-1).expand(-1, -1, values.shape[-1]))

        pose = frame["ego_pose"][:, None]
        self.state = MemoryState(
            embedding=prepend(pick(embedding), seen.embedding),
            reference_point=rigid_transform(pose, prepend(pick(centers), seen.reference_point)),
            timestamp=prepend(new.timestamp, seen.timestamp) - frame["timestamp"][:, None, None],
            egopose=rigid_product(pose, prepend(identity, seen.egopose)),
            velo=prepend(pick(velo), seen.velo),
            valid=torch.ones_like(seen.valid),
        )
