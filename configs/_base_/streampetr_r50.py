# StreamPETR as published for ResNet-50 at 704x256: 644 queries and 256 propagated ones, memory of 4 x 256 (the "24e"
# setting).
_base_ = ["./nuscenes_stream.py"]

position_range = [-61.2, -61.2, -10.0, 61.2, 61.2, 10.0]

model = dict(
    type="StreamPETR",
    data_preprocessor=dict(
        type="StreamPETRDataPreprocessor",
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_size_divisor=32,
    ),
    use_grid_mask=True,
    stride=16,
    num_frame_head_grads=1,
    num_frame_backbone_grads=1,
    num_frame_losses=1,
    img_backbone=dict(
        type="mmdet.ResNet",
        depth=50,
        num_stages=4,
        out_indices=(2, 3),
        frozen_stages=-1,
        norm_cfg=dict(type="BN2d", requires_grad=False),
        norm_eval=True,
        with_cp=True,
        style="pytorch",
        init_cfg=dict(type="Pretrained", checkpoint="torchvision://resnet50"),
    ),
    img_neck=dict(type="StreamPETRNeck", in_channels=[1024, 2048], out_channels=256, num_outs=2),
    img_roi_head=dict(
        type="PerSampleFocalHead",
        num_classes=10,
        in_channels=256,
        embed_dims=256,
        stride=16,
        loss_cls2d=dict(type="mmdet.QualityFocalLoss", use_sigmoid=True, beta=2.0, loss_weight=2.0),
        loss_centerness=dict(type="mmdet.GaussianFocalLoss", loss_weight=1.0),
        loss_bbox2d=dict(type="mmdet.L1Loss", loss_weight=5.0),
        loss_iou2d=dict(type="mmdet.GIoULoss", loss_weight=2.0),
        loss_centers2d=dict(type="mmdet.L1Loss", loss_weight=10.0),
        train_cfg=dict(
            assigner=dict(
                type="PerSampleHungarianAssigner2D",
                cls_cost=dict(type="FocalLossCost", weight=2.0),
                reg_cost=dict(type="BBoxL1Cost", weight=5.0, box_format="xywh"),
                iou_cost=dict(type="IoUCost", iou_mode="giou", weight=2.0),
                centers2d_cost=dict(type="BBox3DL1Cost", weight=10.0),
            )
        ),
    ),
    pts_bbox_head=dict(
        type="PerSampleStreamPETRHead",
        num_classes=10,
        in_channels=256,
        embed_dims=256,
        num_query=644,
        memory_len=1024,
        topk_proposals=256,
        num_propagated=256,
        with_ego_pos=True,
        match_with_velo=False,
        scalar=10,
        noise_scale=1.0,
        dn_weight=1.0,
        split=0.75,
        LID=True,
        depth_num=64,
        depth_start=1,
        pc_range={{_base_.point_cloud_range}},
        position_range=position_range,
        code_weights=[2.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0],
        match_costs=[2.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0],
        transformer=dict(type="StreamPETRTransformer", num_layers=6, num_heads=8, ffn_dims=2048, dropout=0.1),
        bbox_coder=dict(
            type="StreamPETRBoxCoder",
            post_center_range=position_range,
            pc_range={{_base_.point_cloud_range}},
            max_num=300,
            num_classes=10,
        ),
        loss_cls=dict(type="mmdet.FocalLoss", use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=2.0),
        loss_bbox=dict(type="mmdet.L1Loss", loss_weight=0.25),
        train_cfg=dict(
            assigner=dict(
                type="PerSampleHungarianAssigner3D",
                cls_cost=dict(type="FocalLossCost", weight=2.0),
                reg_cost=dict(type="BBox3DL1Cost", weight=0.25),
                iou_cost=dict(type="IoUCost", weight=0.0),
                pc_range={{_base_.point_cloud_range}},
            )
        ),
    ),
)
