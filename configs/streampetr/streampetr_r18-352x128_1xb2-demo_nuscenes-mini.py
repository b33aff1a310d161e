# python tools/train.py configs/streampetr/streampetr_r18-352x128_1xb2-demo_nuscenes-mini.py
#
# A small StreamPETR for CPUs: ResNet-18 from scratch, images of 352x128, 128 queries and 64 propagated ones, 3 decoder
# layers. 1 process x 2 samples, 120 steps; `make demo` trains the first of them. It shows that everything works; it is
# too short to detect well.
_base_ = ["./streampetr_r50-704x256_1xb2-24e_nuscenes-mini.py"]

max_iters = 120
ida_aug_conf = dict(
    resize_lim=(0.20, 0.26),
    final_dim=(128, 352),
    bot_pct_lim=(0.0, 0.0),
    rot_lim=(0.0, 0.0),
    H=900,
    W=1600,
    rand_flip=True,
)
train_pipeline = [
    dict(type="LoadMultiViewImageTurbo", color_type="color", defer=True),
    dict(type="LoadAnnotations3D", with_bbox_3d=True, with_label_3d=True),
    dict(type="StreamPETRLoadCamInstances"),
    dict(type="StreamPETRRangeFilter", point_cloud_range={{_base_.point_cloud_range}}),
    dict(type="StreamPETRResizeCropFlipTurbo", ida_aug_conf=ida_aug_conf, training=True),
    dict(type="StreamPETRGlobalRotScale", rot_range=(-0.3925, 0.3925), scale_ratio_range=(0.95, 1.05)),
    dict(type="PackStreamPETRInputs"),
]
test_pipeline = [
    dict(type="LoadMultiViewImageTurbo", color_type="color", defer=True),
    dict(type="StreamPETRResizeCropFlipTurbo", ida_aug_conf=ida_aug_conf, training=False, scaled_decoding=False),
    dict(type="PackStreamPETRInputs"),
]

model = dict(
    img_backbone=dict(depth=18, norm_cfg=dict(requires_grad=True), norm_eval=False, with_cp=False, init_cfg=None),
    img_neck=dict(in_channels=[256, 512]),
    pts_bbox_head=dict(
        num_query=128,
        memory_len=256,
        topk_proposals=64,
        num_propagated=64,
        transformer=dict(num_layers=3, ffn_dims=512),
    ),
)
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
optim_wrapper = dict(optimizer=dict(lr=2e-4), paramwise_cfg=dict(custom_keys={"img_backbone": dict(lr_mult=1.0)}))
param_scheduler = [
    dict(type="LinearLR", start_factor=1.0 / 3, by_epoch=False, begin=0, end=21),
    dict(type="CosineAnnealingLR", T_max=max_iters, eta_min_ratio=1e-3, by_epoch=False, begin=0, end=max_iters),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
