"""The memory queue against bookkeeping one object at a time, and its start and end of life."""

from __future__ import annotations

import pytest
import torch

from raggedbev.mm.streampetr.memory import MemoryQueue, rigid_product, rigid_transform

M, K, P, C = 6, 3, 2, 4
T0 = 1.5e9


def pose(x, yaw):
    c, s = torch.cos(torch.tensor(yaw)).double(), torch.sin(torch.tensor(yaw)).double()
    out = torch.eye(4, dtype=torch.float64)
    out[0, 0], out[0, 1], out[1, 0], out[1, 1], out[0, 3] = c, -s, s, c, x
    return out


def frame(index, prev_exists):
    poses = torch.stack([pose(100.0 * b + 3 * index, 0.1 * index + b) for b in range(len(prev_exists))])
    return {
        "ego_pose": poses,
        "ego_pose_inv": torch.linalg.inv(poses),
        "timestamp": torch.full((len(prev_exists),), T0 + 0.5 * index, dtype=torch.float64),
        "prev_exists": torch.tensor(prev_exists, dtype=torch.float64),
    }


def queries(index, batch_size=2, number=5):
    generator = torch.Generator().manual_seed(index)
    sizes = {"embedding": C, "centers": 3, "velo": 2}
    out = {
        name: torch.randn(batch_size, number, n, generator=generator, dtype=torch.float64) for name, n in sizes.items()
    }
    out["scores"] = torch.rand(batch_size, number, generator=generator, dtype=torch.float64)
    return out


@pytest.fixture
def queue():
    return MemoryQueue(memory_len=M, topk=K, num_propagated=P, embed_dims=C)


PSEUDO = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], dtype=torch.float64)


def test_follows_every_object(queue):
    """Rows of a frame stand at their world position, with their age and the pose of their own frame."""
    history = []  # per frame: world points, embeddings, poses, index
    for i in range(4):
        now = frame(i, [float(i > 0)] * 2)
        seen = queue.before_frame(now, PSEUDO)
        for age, (points, embedding, world_pose, when) in enumerate(reversed(history[-M // K :])):
            rows = slice(age * K, (age + 1) * K)
            local = rigid_transform(now["ego_pose_inv"][:, None], points)
            torch.testing.assert_close(seen.reference_point[:, rows], local)
            torch.testing.assert_close(seen.embedding[:, rows], embedding)
            motion = now["ego_pose_inv"] @ world_pose
            torch.testing.assert_close(seen.egopose[:, rows], motion[:, None].expand(-1, K, -1, -1))
            assert (seen.timestamp[:, rows] == 0.5 * (i - when)).all()
        new = queries(i)
        queue.after_frame(seen, frame=now, **new)
        best = new["scores"].argsort(dim=1, descending=True)[:, :K]
        chosen = {name: torch.stack([new[name][b, best[b]] for b in range(2)]) for name in ("embedding", "centers")}
        points = rigid_transform(now["ego_pose"][:, None], chosen["centers"])
        history.append((points, chosen["embedding"], now["ego_pose"], i))


def test_a_scene_starts_with_pseudo_queries_and_zeros(queue):
    seen = queue.before_frame(frame(0, [0.0, 0.0]), PSEUDO)
    assert torch.equal(seen.reference_point[:, :P], PSEUDO.expand(2, -1, -1))
    assert torch.equal(seen.egopose[:, :P], torch.eye(4, dtype=torch.float64).expand(2, P, 4, 4))
    rest = seen.rows(P)
    assert all((x == 0).all() for x in (rest.reference_point, rest.egopose, seen.embedding, seen.timestamp, seen.velo))


def test_empty_rows_age_like_real_ones(queue):
    first, second = frame(0, [0.0, 0.0]), frame(1, [1.0, 1.0])
    queue.after_frame(queue.before_frame(first, PSEUDO), frame=first, **queries(0))
    seen = queue.before_frame(second, PSEUDO)
    empty = seen.rows(K + P)
    assert (empty.timestamp == 0.5).all() and (empty.egopose == 0).all() and (empty.embedding == 0).all()
    origin = rigid_transform(second["ego_pose_inv"] @ first["ego_pose"], torch.zeros(2, 3, dtype=torch.float64))
    torch.testing.assert_close(empty.reference_point, origin[:, None].expand_as(empty.reference_point))


def test_reset_and_new_batch_size(queue):
    now = frame(0, [0.0, 0.0])
    queue.after_frame(queue.before_frame(now, PSEUDO), frame=now, **queries(0))
    continued = frame(1, [1.0, 1.0])
    assert (queue.before_frame(continued, PSEUDO).embedding != 0).any()
    assert (queue.before_frame(frame(1, [1.0] * 3), PSEUDO).embedding == 0).all()
    queue.reset()
    seen = queue.before_frame(continued, PSEUDO)
    assert (seen.embedding == 0).all() and torch.equal(seen.reference_point[:, :P], PSEUDO.expand(2, -1, -1))


def test_shapes_do_not_change(queue):
    shapes = set()
    for i in range(3):
        now = frame(i, [1.0, 0.0])
        seen = queue.before_frame(now, PSEUDO)
        queue.after_frame(seen, frame=now, **queries(i))
        shapes.add((seen.embedding.shape, queue.state.embedding.shape))
    assert shapes == {((2, M, C), (2, M + K, C))}


def test_gradients_end_here(queue):
    new = queries(0)
    for values in new.values():
        values.requires_grad_()
    now = frame(0, [0.0, 0.0])
    queue.after_frame(queue.before_frame(now, PSEUDO), frame=now, **new)
    assert not queue.state.embedding.requires_grad and not queue.state.reference_point.requires_grad


def test_nothing_propagated():
    queue = MemoryQueue(memory_len=M, topk=K, num_propagated=0, embed_dims=C)
    now = frame(0, [0.0])
    seen = queue.before_frame(now, PSEUDO[:0])
    assert (seen.egopose == 0).all()


def test_bad_sizes():
    with pytest.raises(ValueError, match=r"num_propagated must lie in 0..memory_len=6, got 7"):
        MemoryQueue(memory_len=M, topk=K, num_propagated=7, embed_dims=C)


def test_products(generator):
    a, b = torch.randn(2, 5, 4, 4, generator=generator), torch.randn(5, 4, 4, generator=generator)
    torch.testing.assert_close(rigid_product(a, b), a @ b)
    a[..., 3, :] = torch.tensor([0.0, 0.0, 0.0, 1.0])
    points = torch.randn(2, 5, 3, generator=generator)
    expected = (a @ torch.cat([points, torch.ones(2, 5, 1)], dim=-1)[..., None])[..., :3, 0]
    torch.testing.assert_close(rigid_transform(a, points), expected)
