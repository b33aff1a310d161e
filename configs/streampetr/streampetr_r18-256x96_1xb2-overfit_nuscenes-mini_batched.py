# The same training with the batched heads and assigners, and ground truth packed by the loader: five `type=` lines.
_base_ = ["./streampetr_r18-256x96_1xb2-overfit_nuscenes-mini.py"]

model = dict(
    img_roi_head=dict(type="BatchedFocalHead", train_cfg=dict(assigner=dict(type="BatchedHungarianAssigner2D"))),
    pts_bbox_head=dict(type="BatchedStreamPETRHead", train_cfg=dict(assigner=dict(type="BatchedHungarianAssigner3D"))),
)
train_dataloader = dict(collate_fn=dict(type="ragged_collate"))
