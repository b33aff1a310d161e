# The same training with the batched heads and assigners: four `type=` lines.
_base_ = ["./streampetr_r18-256x96_1xb2-overfit_nuscenes-mini.py"]

model = dict(
    img_roi_head=dict(type="BatchedFocalHead", train_cfg=dict(assigner=dict(type="BatchedHungarianAssigner2D"))),
    pts_bbox_head=dict(type="BatchedStreamPETRHead", train_cfg=dict(assigner=dict(type="BatchedHungarianAssigner3D"))),
)
