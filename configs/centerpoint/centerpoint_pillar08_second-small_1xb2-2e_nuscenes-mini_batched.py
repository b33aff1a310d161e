# The same as the per-sample config; only the head's `type=` differs.
_base_ = ["./centerpoint_pillar08_second-small_1xb2-2e_nuscenes-mini.py"]

model = dict(pts_bbox_head=dict(type="BatchedCenterHead"))
