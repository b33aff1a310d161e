"""Run by torchrun: on each of two ranks batched and per-sample losses agree, with counts averaged over the ranks."""

from __future__ import annotations

import os
import warnings

warnings.simplefilter("ignore")

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from small_heads import PAD_SHAPE, SIZES, head_2d, head_3d, outputs_2d, outputs_3d, truth_2d, truth_3d  # noqa: E402

from raggedbev.losses import streampetr_loss  # noqa: E402


def check_close(found, wanted):
    for key, value in wanted.items():
        torch.testing.assert_close(found[key], value, rtol=1e-5, atol=1e-6, msg=lambda m, key=key: f"{key}: {m}")


torch.set_num_threads(1)
dist.init_process_group("gloo")
rank = int(os.environ["RANK"])
sizes = SIZES if rank == 0 else [0] * len(SIZES)
gt, gt2d = truth_3d(sizes), truth_2d(sizes)
batched = head_3d("Batched")
losses = batched.loss(outputs_3d(gt), gt)
check_close(losses, head_3d("PerSample").loss(outputs_3d(gt), gt))
check_close(
    head_2d("Batched").loss(outputs_2d(), gt2d, PAD_SHAPE), head_2d("PerSample").loss(outputs_2d(), gt2d, PAD_SHAPE)
)
if rank == 0:
    # The other rank has no objects: the mean count is half of this rank's, which doubles the box loss.
    outs, config = outputs_3d(gt), batched.loss_config()
    alone = streampetr_loss(outs["all_cls_scores"], outs["all_bbox_preds"], gt, batched.assigner, config, outs["dn"])
    torch.testing.assert_close(losses["loss_bbox"], 2 * alone["loss_bbox"], rtol=1e-5, atol=0)
    torch.testing.assert_close(losses["dn_loss_bbox"], 2 * alone["dn_loss_bbox"], rtol=1e-5, atol=0)
    torch.testing.assert_close(losses["loss_cls"], alone["loss_cls"])
dist.barrier()
dist.destroy_process_group()
print(f"rank{rank}")
