"""Run by torchrun: two ranks, one of them without objects, average the counts of their losses and their gradients."""

from __future__ import annotations

import copy
import os
import warnings
from contextlib import contextmanager
from datetime import timedelta

warnings.simplefilter("ignore")

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from small_heads import PAD_SHAPE, SIZES, head_2d, head_3d, outputs_2d, outputs_3d, truth_2d, truth_3d  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn.parallel import DistributedDataParallel  # noqa: E402

from raggedbev.losses import streampetr_loss  # noqa: E402
from raggedbev.mm.streampetr.detector import token_location  # noqa: E402


def check_close(found, wanted):
    for key, value in wanted.items():
        torch.testing.assert_close(found[key], value, rtol=1e-5, atol=1e-6, msg=lambda m, key=key: f"{key}: {m}")


@contextmanager
def counted_reductions():
    """How many numbers each all_reduce inside averages."""
    calls, reduce = [], dist.all_reduce

    def counted(tensor, *args, **kwargs):
        calls.append(tensor.numel())
        return reduce(tensor, *args, **kwargs)

    dist.all_reduce = counted
    try:
        yield calls
    finally:
        dist.all_reduce = reduce


def check_losses(rank, sizes):
    """Batched and per-sample losses agree on each rank, with counts averaged over the ranks."""
    gt, gt2d = truth_3d(sizes), truth_2d(sizes)
    batched = head_3d("Batched")
    with counted_reductions() as calls:
        losses = batched.loss(outputs_3d(gt), gt)
        assert calls == [3], calls  # matches of two layers, and denoising objects
        head_2d("Batched").loss(outputs_2d(), gt2d, PAD_SHAPE)
        assert calls == [3, 1], calls
        calls.clear()
        head_3d("PerSample").loss(outputs_3d(gt), gt)
        assert len(calls) == 4, calls
    check_close(losses, head_3d("PerSample").loss(outputs_3d(gt), gt))
    check_close(
        head_2d("Batched").loss(outputs_2d(), gt2d, PAD_SHAPE), head_2d("PerSample").loss(outputs_2d(), gt2d, PAD_SHAPE)
    )
    check_close(head_3d("Batched", loss_graph=True).loss(outputs_3d(gt), gt), losses)
    graphed_2d, plain_2d = (head_2d("Batched", loss_graph=graph) for graph in (True, False))
    check_close(graphed_2d.loss(outputs_2d(), gt2d, PAD_SHAPE), plain_2d.loss(outputs_2d(), gt2d, PAD_SHAPE))
    if rank == 0:
        # The other rank has no objects: the mean count is half of this rank's, which doubles the box loss.
        outs, config = outputs_3d(gt), batched.loss_config()
        logits, boxes = outs["all_cls_scores"], outs["all_bbox_preds"]
        alone = streampetr_loss(logits, boxes, gt, batched.assigner, config, outs["dn"])
        torch.testing.assert_close(losses["loss_bbox"], 2 * alone["loss_bbox"], rtol=1e-5, atol=0)
        torch.testing.assert_close(losses["dn_loss_bbox"], 2 * alone["dn_loss_bbox"], rtol=1e-5, atol=0)
        torch.testing.assert_close(losses["loss_cls"], alone["loss_cls"])


class Heads(nn.Module):
    """Both heads on features of one camera per sample; the sum of their losses."""

    def __init__(self, kind):
        super().__init__()
        torch.manual_seed(0)
        layers = {"type": "StreamPETRTransformer", "num_layers": 2, "num_heads": 8, "ffn_dims": 32, "dropout": 0.0}
        self.head_2d, self.head_3d = head_2d(kind), head_3d(kind, transformer=layers)

    def forward(self, feats, frame, gt, gt2d):
        location = token_location(4, 6, 16, PAD_SHAPE, feats.device)
        losses = self.head_2d.loss(self.head_2d(feats.flatten(0, 1), location), gt2d, PAD_SHAPE)
        losses |= self.head_3d.loss(self.head_3d(feats, location, frame, gt), gt)
        return sum(losses.values())


def frame_inputs(rank, index):
    """Features [B, 1, 16, 4, 6] and geometry of a rank's frame."""
    batch = len(SIZES)
    generator = torch.Generator().manual_seed(10 * rank + index)
    camera = torch.tensor([[50.0, 0, 48, 0], [0, 60, 32, 0], [0, 0, 1, 0], [0, 0, 0, 1]], dtype=torch.float64)
    axes = torch.tensor([[0.0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0.5], [0, 0, 0, 1]], dtype=torch.float64)
    pose = torch.eye(4, dtype=torch.float64).repeat(batch, 1, 1)
    frame = {
        "intrinsics": camera.repeat(batch, 1, 1, 1),
        "lidar2img": (camera @ axes).repeat(batch, 1, 1, 1),
        "ego_pose": pose,
        "ego_pose_inv": pose,
        "timestamp": torch.full((batch,), 1.5e9 + 0.5 * index, dtype=torch.float64),
        "prev_exists": torch.full((batch,), float(index > 0)),
        "pad_shape": PAD_SHAPE,
    }
    return torch.randn(batch, 1, 16, 4, 6, generator=generator, dtype=torch.float64), frame


def gradients(model, rank, index, sizes):
    """Gradients of one frame by parameter, with fixed noise."""
    torch.manual_seed(index)
    model.zero_grad()
    model(*frame_inputs(rank, index), truth_3d(sizes), truth_2d(sizes)).backward()
    return {name.removeprefix("module."): p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


def check_gradients(rank, sizes):
    """DDP gives both ranks the mean of their gradients, for both kinds of heads alike, frame after frame.

    A parameter that a rank without objects does not use would raise here in the second frame, or have no gradient.
    """
    found = {}
    for kind in ("PerSample", "Batched"):
        model = Heads(kind).double()
        alone = copy.deepcopy(model)
        parallel = DistributedDataParallel(model, find_unused_parameters=False)
        for index in range(2):
            found[kind, index] = gradients(parallel, rank, index, sizes)
            for name, local in gradients(alone, rank, index, sizes).items():
                shared = found[kind, index][name]
                dist.all_reduce(local)
                torch.testing.assert_close(shared, local / 2, rtol=1e-10, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")
                other = shared.clone()
                dist.broadcast(other, src=0)
                assert torch.equal(shared, other), f"{name} differs between the ranks"
    for index in range(2):
        for name, wanted in found["PerSample", index].items():
            atol = 1e-10 * wanted.abs().max().item() + 1e-14
            torch.testing.assert_close(
                found["Batched", index][name], wanted, rtol=0, atol=atol, msg=lambda m, n=name: f"{n}: {m}"
            )


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=120))
    own_rank = int(os.environ["RANK"])
    own_sizes = SIZES if own_rank == 0 else [0] * len(SIZES)
    check_losses(own_rank, own_sizes)
    check_gradients(own_rank, own_sizes)
    dist.barrier()
    dist.destroy_process_group()
    print(f"rank{own_rank}")
