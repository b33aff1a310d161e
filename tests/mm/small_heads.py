"""Small heads with random outputs and objects, shared by the tests of heads."""

from __future__ import annotations

import torch
from mmdet3d.registry import MODELS

import raggedbev.mm.streampetr  # noqa: F401
from raggedbev.losses import DenoisingConfig, DenoisingOutput, GroundTruth2D, GroundTruth3D, prepare_denoising

PC_RANGE = [-51.2, -51.2, -5.0, 51.2, 51.2, 3.0]
PAD_SHAPE = (64, 96)
SIZES = [3, 0, 12]


def head_3d(kind, assigner=None, **options):
    assigner = assigner or f"{kind}HungarianAssigner3D"
    layer = {"num_layers": 2, "num_heads": 8, "ffn_dims": 32}
    coder = {"type": "StreamPETRBoxCoder", "post_center_range": PC_RANGE, "pc_range": PC_RANGE, "max_num": 5}
    config = {
        "type": f"{kind}StreamPETRHead",
        "in_channels": 16,
        "embed_dims": 32,
        "num_query": 10,
        "memory_len": 8,
        "topk_proposals": 4,
        "num_propagated": 4,
        "depth_num": 32,
        "transformer": {"type": "StreamPETRTransformer", **layer},
        "bbox_coder": coder,
        "loss_cls": {"type": "mmdet.FocalLoss", "use_sigmoid": True, "loss_weight": 2.0},
        "loss_bbox": {"type": "mmdet.L1Loss", "loss_weight": 0.25},
        "train_cfg": {"assigner": {"type": assigner}},
        **options,
    }
    return MODELS.build(config)


def head_2d(kind, **options):
    config = {
        "type": f"{kind}FocalHead",
        "in_channels": 16,
        "embed_dims": 32,
        "loss_cls2d": {"type": "mmdet.QualityFocalLoss", "use_sigmoid": True, "beta": 2.0, "loss_weight": 2.0},
        "loss_centerness": {"type": "mmdet.GaussianFocalLoss", "loss_weight": 1.0},
        "loss_bbox2d": {"type": "mmdet.L1Loss", "loss_weight": 5.0},
        "loss_iou2d": {"type": "mmdet.GIoULoss", "loss_weight": 2.0},
        "loss_centers2d": {"type": "mmdet.L1Loss", "loss_weight": 10.0},
        "train_cfg": {"assigner": {"type": f"{kind}HungarianAssigner2D"}},
        **options,
    }
    return MODELS.build(config)


def truth_3d(sizes=SIZES):
    g = torch.Generator().manual_seed(0)
    boxes = [torch.rand(n, 9, generator=g) * 4 + 0.2 for n in sizes]
    return GroundTruth3D(boxes, [torch.randint(0, 10, (n,), generator=g) for n in sizes])


def truth_2d(sizes=SIZES):
    g = torch.Generator().manual_seed(0)
    low = [torch.rand(n, 2, generator=g) * 40 for n in sizes]
    labels = [torch.randint(0, 10, (n,), generator=g) for n in sizes]
    return GroundTruth2D([torch.cat([x, x + 9], 1) for x in low], labels, [x + 4 for x in low])


def outputs_3d(gt, with_dn=True):
    g = torch.Generator().manual_seed(1)

    def rand(count):
        return torch.randn(2, 3, count, 10, generator=g)

    dn = None
    if with_dn:
        queries = prepare_denoising(gt, DenoisingConfig(groups=2), generator=g)
        dn = DenoisingOutput(rand(queries.pad), rand(queries.pad), queries)
    return {"all_cls_scores": rand(14).requires_grad_(), "all_bbox_preds": rand(14).requires_grad_(), "dn": dn}


def outputs_2d():
    g = torch.Generator().manual_seed(1)
    boxes, centers = torch.rand(3, 24, 4, generator=g) * 0.4 + 0.1, torch.rand(3, 24, 2, generator=g)
    return {
        "enc_cls_scores": torch.randn(3, 24, 10, generator=g),
        "enc_bbox_preds": boxes,
        "pred_centers2d": centers,
        "centerness": torch.randn(3, 24, 1, generator=g),
    }
