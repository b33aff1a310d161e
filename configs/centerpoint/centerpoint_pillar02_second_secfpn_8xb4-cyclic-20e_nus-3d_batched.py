# mmdet3d's CenterPoint with batched targets, and ground truth packed by the loader: three `type=` lines.
_base_ = ["mmdet3d::centerpoint/centerpoint_pillar02_second_secfpn_8xb4-cyclic-20e_nus-3d.py"]

custom_imports = dict(imports=["raggedbev.mm"], allow_failed_imports=False)
model = dict(
    data_preprocessor=dict(type="RaggedDet3DDataPreprocessor"),
    pts_bbox_head=dict(type="BatchedCenterHead"),
)
train_dataloader = dict(collate_fn=dict(type="ragged_collate"))
