# python tools/train.py configs/streampetr/streampetr_r18-256x96_1xb2-overfit_nuscenes-mini.py
#
# Learns the training scenes of tools/create_mini.py by heart and is tested on just these: a detector that cannot do
# this has a mistake in targets, losses, memory, decoder or evaluation. No augmentation, no dropout, a narrow model;
# velocity weighs less in the box loss, because its errors in metres per second would outweigh the positions at first.
# 8 scenes x 12 frames = 48 steps of 2 samples an epoch; 12,000 steps = 250 epochs. Figures: docs/guide/streampetr.md.
_base_ = ["./streampetr_r18-352x128_1xb2-demo_nuscenes-mini.py"]

max_iters = 12000
embed_dims = 128
ida_aug_conf = dict(
    resize_lim=(0.16, 0.16),
    final_dim=(96, 256),
    bot_pct_lim=(0.0, 0.0),
    rot_lim=(0.0, 0.0),
    H=900,
    W=1600,
    rand_flip=False,
)
train_pipeline = [
    dict(type="LoadMultiViewImageTurbo", color_type="color", defer=True),
    dict(type="LoadAnnotations3D", with_bbox_3d=True, with_label_3d=True),
    dict(type="StreamPETRLoadCamInstances"),
    dict(type="StreamPETRRangeFilter", point_cloud_range={{_base_.point_cloud_range}}),
    dict(type="StreamPETRResizeCropFlipTurbo", ida_aug_conf=ida_aug_conf, training=False, scaled_decoding=False),
    dict(type="PackStreamPETRInputs"),
]
test_pipeline = [
    dict(type="LoadMultiViewImageTurbo", color_type="color", defer=True),
    dict(type="StreamPETRResizeCropFlipTurbo", ida_aug_conf=ida_aug_conf, training=False, scaled_decoding=False),
    dict(type="PackStreamPETRInputs"),
]

model = dict(
    use_grid_mask=False,
    image_dtype="bfloat16",
    img_backbone=dict(base_channels=32),
    img_neck=dict(in_channels=[128, 256], out_channels=embed_dims),
    img_roi_head=dict(in_channels=embed_dims, embed_dims=embed_dims),
    pts_bbox_head=dict(
        in_channels=embed_dims,
        embed_dims=embed_dims,
        scalar=5,
        code_weights=[2.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.2, 0.2],
        transformer=dict(num_heads=4, dropout=0.0),
    ),
)
train_cfg = dict(max_iters=max_iters, val_interval=3000)
optim_wrapper = dict(optimizer=dict(lr=4e-4))
param_scheduler = [
    dict(type="LinearLR", start_factor=1.0 / 3, by_epoch=False, begin=0, end=201),
    dict(type="CosineAnnealingLR", T_max=max_iters, eta_min_ratio=1e-2, by_epoch=False, begin=0, end=max_iters),
]
randomness = dict(seed=0)
default_hooks = dict(logger=dict(interval=50), checkpoint=dict(interval=500))
train_dataloader = dict(
    num_workers=0,
    persistent_workers=False,
    dataset=dict(pipeline=train_pipeline, keep_in_memory=True),
)
val_dataloader = dict(
    num_workers=0,
    persistent_workers=False,
    dataset=dict(pipeline=test_pipeline, ann_file="nuscenes_infos_train.pkl", keep_in_memory=True),
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file="data/mini/nuscenes_infos_train.pkl", eval_set="mini_train")
test_evaluator = val_evaluator
