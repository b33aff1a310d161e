# python examples/petr_style/swap.py
# A head in the manner of PETR that goes through layers and samples one by one; its twin is petr_style_batched.py.
custom_imports = dict(imports=["petr_parts", "raggedbev.mm"], allow_failed_imports=False)
default_scope = "mmdet3d"
point_cloud_range = [-51.2, -51.2, -5.0, 51.2, 51.2, 3.0]

model = dict(
    type="PETRStyleHead",
    in_channels=64,
    num_query=100,
    num_classes=10,
    num_layers=6,
    pc_range=point_cloud_range,
    code_weights=[1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.2, 0.2],
    train_cfg=dict(
        assigner=dict(
            type="PerSamplePETRAssigner",
            cls_cost=dict(type="FocalLossCost", weight=2.0),
            reg_cost=dict(type="BBox3DL1Cost", weight=0.25),
            iou_cost=dict(type="IoUCost", weight=0.0),
            pc_range=point_cloud_range,
            box_code="petr",
        )
    ),
)
