# tools/dist_train.sh configs/streampetr/streampetr_r50-704x256-428q_8xb2-60e_nuscenes.py 8
#
# The published setting with 300 queries and 128 propagated ones, memory of 4 x 128: 28,130 // 16 = 1,758 steps an
# epoch, 60 epochs.
_base_ = ["./streampetr_r50-704x256_8xb2-24e_nuscenes.py"]

num_epochs = 60
max_iters = num_epochs * (28130 // 16)

model = dict(pts_bbox_head=dict(num_query=300, memory_len=512, topk_proposals=128, num_propagated=128))
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys={"img_backbone": dict(lr_mult=0.1)}))
param_scheduler = [
    dict(type="LinearLR", start_factor=1.0 / 3, by_epoch=False, begin=0, end=501),
    dict(type="CosineAnnealingLR", T_max=max_iters, eta_min_ratio=1e-3, by_epoch=False, begin=0, end=max_iters),
]
