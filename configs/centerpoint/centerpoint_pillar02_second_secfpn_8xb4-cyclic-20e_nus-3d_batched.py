# mmdet3d's CenterPoint with batched targets: only the head's `type=` differs from the config that it inherits.
_base_ = ["mmdet3d::centerpoint/centerpoint_pillar02_second_secfpn_8xb4-cyclic-20e_nus-3d.py"]

custom_imports = dict(imports=["raggedbev.mm"], allow_failed_imports=False)
model = dict(pts_bbox_head=dict(type="BatchedCenterHead"))
