# The same as the per-sample config, batched, and ground truth packed by the loader: three `type=` lines.
_base_ = ["./centerpoint_pillar08_second-small_1xb2-2e_nuscenes-mini.py"]

model = dict(
    data_preprocessor=dict(type="RaggedDet3DDataPreprocessor"),
    pts_bbox_head=dict(type="BatchedCenterHead"),
)
train_dataloader = dict(collate_fn=dict(type="ragged_collate"))
