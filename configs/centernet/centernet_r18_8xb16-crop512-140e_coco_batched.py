# mmdet's CenterNet with batched targets: only the head's `type=` differs from the config that it inherits.
_base_ = ["mmdet::centernet/centernet_r18_8xb16-crop512-140e_coco.py"]

custom_imports = dict(imports=["raggedbev.mm"], allow_failed_imports=False)
model = dict(bbox_head=dict(type="BatchedCenterNetHead"))
