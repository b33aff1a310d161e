# python tools/train.py configs/centerpoint/centerpoint_pillar08_second-small_1xb2-2e_nuscenes-mini.py
#
# A small CenterPoint for CPUs on the lidar points of the mini data: 128 x 128 pillars of 0.8 m, maps of 64 x 64, three
# stages of 16 to 64 channels. 1 process x 2 samples. It shows that everything works; it is too short to detect well.
_base_ = ["mmdet3d::centerpoint/centerpoint_pillar02_second_secfpn_8xb4-cyclic-20e_nus-3d.py"]

custom_imports = dict(imports=["raggedbev.mm", "raggedbev.mm.hooks"], allow_failed_imports=False)
data_root = "data/mini/"
point_cloud_range = [-51.2, -51.2, -5.0, 51.2, 51.2, 3.0]
voxel_size = [0.8, 0.8, 8]
class_names = {{_base_.class_names}}

model = dict(
    data_preprocessor=dict(voxel_layer=dict(max_num_points=20, voxel_size=voxel_size, max_voxels=(8000, 8000))),
    pts_voxel_encoder=dict(feat_channels=[16], voxel_size=voxel_size),
    pts_middle_encoder=dict(in_channels=16, output_shape=(128, 128)),
    pts_backbone=dict(in_channels=16, out_channels=[16, 32, 64], layer_nums=[1, 1, 1], layer_strides=[1, 2, 2]),
    pts_neck=dict(in_channels=[16, 32, 64], out_channels=[16, 16, 16], upsample_strides=[0.5, 1, 2]),
    pts_bbox_head=dict(
        in_channels=48, share_conv_channel=16, bbox_coder=dict(out_size_factor=2, voxel_size=voxel_size[:2])
    ),
    train_cfg=dict(pts=dict(grid_size=[128, 128, 1], voxel_size=voxel_size, out_size_factor=2)),
    test_cfg=dict(pts=dict(voxel_size=voxel_size[:2], out_size_factor=2, nms_type="circle")),
)

train_pipeline = [
    dict(type="LoadPointsFromFile", coord_type="LIDAR", load_dim=5, use_dim=5),
    dict(type="LoadAnnotations3D", with_bbox_3d=True, with_label_3d=True),
    dict(
        type="GlobalRotScaleTrans",
        rot_range=[-0.3925, 0.3925],
        scale_ratio_range=[0.95, 1.05],
        translation_std=[0, 0, 0],
    ),
    dict(type="RandomFlip3D", sync_2d=False, flip_ratio_bev_horizontal=0.5, flip_ratio_bev_vertical=0.5),
    dict(type="PointsRangeFilter", point_cloud_range=point_cloud_range),
    dict(type="ObjectRangeFilter", point_cloud_range=point_cloud_range),
    dict(type="ObjectNameFilter", classes=class_names),
    dict(type="PointShuffle"),
    dict(type="Pack3DDetInputs", keys=["points", "gt_bboxes_3d", "gt_labels_3d"]),
]
train_dataloader = dict(
    _delete_=True,
    batch_size=2,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(
        type="NuScenesDataset",
        data_root=data_root,
        ann_file="nuscenes_infos_train.pkl",
        pipeline=train_pipeline,
        metainfo=dict(classes=class_names),
        data_prefix=dict(pts="samples/LIDAR_TOP", img="", sweeps="sweeps/LIDAR_TOP"),
        use_valid_flag=True,
        test_mode=False,
        box_type_3d="LiDAR",
    ),
)
train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=2, _delete_=True)
optim_wrapper = dict(optimizer=dict(lr=1e-3))
param_scheduler = []
val_cfg = val_dataloader = val_evaluator = None
test_cfg = test_dataloader = test_evaluator = None
