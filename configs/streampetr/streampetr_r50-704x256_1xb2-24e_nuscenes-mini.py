# python tools/train.py configs/streampetr/streampetr_r50-704x256_1xb2-24e_nuscenes-mini.py
#
# The published model on v1.0-mini, the real one or that of tools/create_mini.py, in data/mini: 1 process x 2 samples;
# the mini training split of tools/create_mini.py has 96 frames = 48 steps an epoch, 24 epochs = 1,152 steps (real
# mini: 323 frames). Add --amp on a GPU. Learning rate 4e-4 for 16 samples a step, scaled to 2.
_base_ = ["./streampetr_r50-704x256_8xb2-24e_nuscenes.py"]

data_root = "data/mini/"
version = "v1.0-mini"
metainfo = dict(version=version)
max_iters = 24 * 48

train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
optim_wrapper = dict(
    _delete_=True,
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=5e-5, weight_decay=0.01),
    paramwise_cfg=dict(custom_keys={"img_backbone": dict(lr_mult=0.25)}),
    clip_grad=dict(max_norm=35, norm_type=2),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1.0 / 3, by_epoch=False, begin=0, end=101),
    dict(type="CosineAnnealingLR", T_max=max_iters, eta_min_ratio=1e-3, by_epoch=False, begin=0, end=max_iters),
]
auto_scale_lr = dict(base_batch_size=2)
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(interval=48))
train_dataloader = dict(num_workers=2, dataset=dict(data_root=data_root, metainfo=metainfo))
val_dataloader = dict(num_workers=2, dataset=dict(data_root=data_root, metainfo=metainfo))
test_dataloader = val_dataloader
val_evaluator = dict(data_root=data_root, ann_file=data_root + "nuscenes_infos_val.pkl")
test_evaluator = val_evaluator
