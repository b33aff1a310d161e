# tools/dist_train.sh configs/streampetr/streampetr_r50-704x256_8xb2-24e_nuscenes.py 8
#
# 8 GPUs x 2 samples = 16 a step; 28,130 training frames / 16 = 1,758 steps an epoch; 24 epochs = 42,192 steps.
# Learning rate 4e-4 for 16 samples a step: --auto-scale-lr adapts it to another number. Mixed precision for backbone
# and neck.
_base_ = ["../_base_/default_runtime.py", "../_base_/streampetr_r50.py"]

num_iters_per_epoch = 28130 // 16
num_epochs = 24
max_iters = num_epochs * num_iters_per_epoch

train_cfg = dict(type="StreamTrainLoop", max_iters=max_iters, val_interval=max_iters)
optim_wrapper = dict(
    type="AmpOptimWrapper",
    loss_scale="dynamic",
    optimizer=dict(type="AdamW", lr=4e-4, weight_decay=0.01),
    paramwise_cfg=dict(custom_keys={"img_backbone": dict(lr_mult=0.25)}),
    clip_grad=dict(max_norm=35, norm_type=2),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1.0 / 3, by_epoch=False, begin=0, end=501),
    dict(type="CosineAnnealingLR", T_max=max_iters, eta_min_ratio=1e-3, by_epoch=False, begin=0, end=max_iters),
]
auto_scale_lr = dict(enable=False, base_batch_size=16)
default_hooks = dict(checkpoint=dict(interval=num_iters_per_epoch))
