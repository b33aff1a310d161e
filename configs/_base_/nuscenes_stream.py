# nuScenes as video: frames in temporal order for training (streaming sampler) and testing (contiguous shards).
# A config sets: data_root, version, img_scale of ida_aug_conf. Images stay uint8 until the data preprocessor. Training
# decodes JPEG at 1/2, 1/4 or 1/8 where that is as large as the scaled image; tests decode at full size. The published
# pixels come from LoadMultiViewImages and StreamPETRResizeCropFlip.
dataset_type = "StreamNuScenesDataset"
data_root = "data/nuscenes/"
version = "v1.0-trainval"
class_names = [
    "car",
    "truck",
    "construction_vehicle",
    "bus",
    "trailer",
    "barrier",
    "motorcycle",
    "bicycle",
    "pedestrian",
    "traffic_cone",
]
point_cloud_range = [-51.2, -51.2, -5.0, 51.2, 51.2, 3.0]
metainfo = dict(classes=class_names, version=version)
data_prefix = dict(
    pts="samples/LIDAR_TOP",
    sweeps="sweeps/LIDAR_TOP",
    CAM_FRONT="samples/CAM_FRONT",
    CAM_FRONT_LEFT="samples/CAM_FRONT_LEFT",
    CAM_FRONT_RIGHT="samples/CAM_FRONT_RIGHT",
    CAM_BACK="samples/CAM_BACK",
    CAM_BACK_LEFT="samples/CAM_BACK_LEFT",
    CAM_BACK_RIGHT="samples/CAM_BACK_RIGHT",
)
ida_aug_conf = dict(
    resize_lim=(0.38, 0.55),
    final_dim=(256, 704),
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
    dict(type="StreamPETRRangeFilter", point_cloud_range=point_cloud_range),
    dict(type="StreamPETRResizeCropFlipTurbo", ida_aug_conf=ida_aug_conf, training=True),
    dict(type="StreamPETRGlobalRotScale", rot_range=(-0.3925, 0.3925), scale_ratio_range=(0.95, 1.05)),
    dict(type="PackStreamPETRInputs"),
]
test_pipeline = [
    dict(type="LoadMultiViewImageTurbo", color_type="color", defer=True),
    dict(type="StreamPETRResizeCropFlipTurbo", ida_aug_conf=ida_aug_conf, training=False, scaled_decoding=False),
    dict(type="PackStreamPETRInputs"),
]

train_dataloader = dict(
    batch_size=2,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="StreamSampler"),
    batch_sampler=dict(type="StreamBatchSampler"),
    collate_fn=dict(type="pseudo_collate"),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        ann_file="nuscenes_infos_train.pkl",
        data_prefix=data_prefix,
        metainfo=metainfo,
        modality=dict(use_camera=True, use_lidar=False),
        pipeline=train_pipeline,
        seq_split_num=2,
        test_mode=False,
        box_type_3d="LiDAR",
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type="ContiguousSampler"),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        ann_file="nuscenes_infos_val.pkl",
        data_prefix=data_prefix,
        metainfo=metainfo,
        modality=dict(use_camera=True, use_lidar=False),
        pipeline=test_pipeline,
        test_mode=True,
        box_type_3d="LiDAR",
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="StreamNuScenesMetric", data_root=data_root, ann_file=data_root + "nuscenes_infos_val.pkl")
test_evaluator = val_evaluator
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
