# mmdet's CenterNet with batched targets, and ground truth packed by the loader: three `type=` lines.
_base_ = ["mmdet::centernet/centernet_r18_8xb16-crop512-140e_coco.py"]

custom_imports = dict(imports=["raggedbev.mm"], allow_failed_imports=False)
model = dict(
    data_preprocessor=dict(type="RaggedDetDataPreprocessor"),
    bbox_head=dict(type="BatchedCenterNetHead"),
)
train_dataloader = dict(collate_fn=dict(type="ragged_collate"))
