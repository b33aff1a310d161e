"""Config files as a user writes them, read in a fresh process: which lines swap which assigner."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import warnings
warnings.simplefilter("ignore")
import sys
from pathlib import Path
import mmdet.models, mmdet3d.models
from mmdet.registry import TASK_UTILS as MMDET
from mmdet3d.registry import TASK_UTILS as MMDET3D
from mmengine.config import Config
from mmengine.registry import DefaultScope

class Published:
    def __init__(self, **config):
        pass

MMDET3D.register_module(name="HungarianAssigner3D", module=Published)  # as the projects do

def built(name, registry, *keys):
    config = Config.fromfile(Path(sys.argv[1]) / f"{name}.py")
    part = config.model
    for key in keys:
        part = part[key]
    with DefaultScope.overwrite_default_scope(config.default_scope):
        return type(registry.build(part)).__name__, part.type

assert built("bevfusion", MMDET, "bbox_head", "train_cfg", "assigner")[0] == "Published"
assert built("detr3d", MMDET3D, "train_cfg", "pts", "assigner")[0] == "Published"
assert not any(name.startswith("raggedbev") for name in sys.modules)
print(*built("bevfusion_batched", MMDET, "bbox_head", "train_cfg", "assigner"))
print(*built("detr3d_batched", MMDET3D, "train_cfg", "pts", "assigner"))
print(*built("detr_batched", MMDET, "train_cfg", "assigner"))
print(*built("bevfusion", MMDET, "bbox_head", "train_cfg", "assigner"))
"""

FILES = {
    "bevfusion": """
default_scope = 'mmdet3d'
model = dict(bbox_head=dict(train_cfg=dict(assigner=dict(
    type='HungarianAssigner3D',
    iou_calculator=dict(type='BboxOverlaps3D', coordinate='lidar'),
    cls_cost=dict(type='mmdet.FocalLossCost', gamma=2.0, alpha=0.25, weight=0.15),
    reg_cost=dict(type='BBoxBEVL1Cost', weight=0.25),
    iou_cost=dict(type='IoU3DCost', weight=0.25)))))
""",
    "bevfusion_batched": """
_base_ = ['./bevfusion.py']
model = dict(bbox_head=dict(train_cfg=dict(assigner=dict(_scope_='raggedbev.mm'))))
""",
    "detr3d": """
default_scope = 'mmdet3d'
model = dict(train_cfg=dict(pts=dict(assigner=dict(
    type='HungarianAssigner3D',
    cls_cost=dict(type='mmdet.FocalLossCost', weight=2.0),
    reg_cost=dict(type='BBox3DL1Cost', weight=0.25),
    iou_cost=dict(type='mmdet.IoUCost', weight=0.0),
    pc_range=[-51.2, -51.2, -5.0, 51.2, 51.2, 3.0]))))
""",
    "detr3d_batched": """
_base_ = ['./detr3d.py']
custom_imports = dict(imports=['raggedbev.mm'], allow_failed_imports=False)
model = dict(train_cfg=dict(pts=dict(assigner=dict(type='BatchedHungarianAssigner3D', box_code='detr3d'))))
""",
    "detr_batched": """
_base_ = ['mmdet::detr/detr_r50_8xb2-150e_coco.py']
custom_imports = dict(imports=['raggedbev.mm'], allow_failed_imports=False)
model = dict(train_cfg=dict(assigner=dict(type='BatchedHungarianAssigner')))
""",
}


def test_lines_that_swap_the_assigner(tmp_path):
    for name, text in FILES.items():
        (tmp_path / f"{name}.py").write_text(text)
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split("\n")[:-1] == [
        "BatchedTransFusionAssigner3D HungarianAssigner3D",
        "BatchedHungarianAssigner3D BatchedHungarianAssigner3D",
        "BatchedHungarianAssigner BatchedHungarianAssigner",
        "Published HungarianAssigner3D",
    ]
    assert "WARNING" not in result.stderr
