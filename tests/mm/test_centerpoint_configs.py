"""Configs with batched CenterPoint heads: they differ from their twins in three `type=`, they build, the small trains
to the same losses."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from mmdet3d.registry import MODELS
from mmdet3d.structures import Det3DDataSample, LiDARInstance3DBoxes
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData

CONFIGS = Path(__file__).parents[2] / "configs" / "centerpoint"
SMALL = CONFIGS / "centerpoint_pillar08_second-small_1xb2-2e_nuscenes-mini.py"
BATCHED = sorted(CONFIGS.glob("*_batched.py"))


def plain(value):
    """A config without the scopes that mmengine notes when a config inherits from another package."""
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items() if key != "_scope_"}
    return [plain(part) for part in value] if isinstance(value, (list, tuple)) else value


def differences(left, right, path=""):
    """(path, left value, right value) wherever two nested configs differ."""
    if isinstance(left, dict) and isinstance(right, dict):
        for key in sorted(set(left) | set(right)):
            yield from differences(left.get(key), right.get(key), f"{path}.{key}")
    elif left != right:
        yield path, left, right


@pytest.mark.parametrize("path", BATCHED, ids=lambda path: path.stem)
def test_only_types_differ(path):
    config = Config.fromfile(path, import_custom_modules=False)
    twin = CONFIGS / path.name.replace("_batched", "")
    if twin.exists():
        stock = Config.fromfile(twin, import_custom_modules=False)
    else:
        stock = Config._get_cfg_path(f"mmdet3d::centerpoint/{twin.name}", str(path))[0]
        stock = Config.fromfile(stock)
    found = {
        place: values
        for place, *values in differences(plain(stock.to_dict()), plain(config.to_dict()))
        if place != ".custom_imports"
    }
    assert found == {
        ".model.pts_bbox_head.type": ["CenterHead", "BatchedCenterHead"],
        ".model.data_preprocessor.type": ["Det3DDataPreprocessor", "RaggedDet3DDataPreprocessor"],
        ".train_dataloader.collate_fn": [None, {"type": "ragged_collate"}],
    }


@pytest.mark.parametrize("path", BATCHED, ids=lambda path: path.stem)
def test_heads_build(path):
    config = Config.fromfile(path)
    init_default_scope("mmdet3d")
    head = dict(config.model.pts_bbox_head, train_cfg=config.model.train_cfg.pts, test_cfg=config.model.test_cfg.pts)
    built = MODELS.build(head)
    assert type(built).__name__ == "BatchedCenterHead" and built.train_cfg.max_objs == 500


def random_batch(generator, objects):
    """Points and boxes of one sample each."""
    points, samples = [], []
    for count in objects:
        place = (torch.rand(count, 2, generator=generator) - 0.5) * 90
        rest = torch.rand(count, 7, generator=generator) * 3 + 0.5
        sample = Det3DDataSample()
        sample.gt_instances_3d = InstanceData(
            bboxes_3d=LiDARInstance3DBoxes(torch.cat([place, rest], 1), box_dim=9),
            labels_3d=torch.randint(0, 10, (count,), generator=generator),
        )
        sample.set_metainfo({"box_type_3d": LiDARInstance3DBoxes})
        samples.append(sample)
        spread = torch.tensor([100.0, 100.0, 6.0, 1.0, 0.0])
        points.append((torch.rand(3000, 5, generator=generator) - torch.tensor([0.5, 0.5, 0.7, 0, 0])) * spread)
    return {"inputs": {"points": points}, "data_samples": samples}


def train(path, steps):
    """Losses of some steps on made-up points."""
    config = Config.fromfile(path)
    init_default_scope("mmdet3d")
    torch.manual_seed(0)
    model = MODELS.build(config.model)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(1)
    history = []
    for step in range(steps):
        data = model.data_preprocessor(random_batch(generator, [0, 0] if step == 1 else [20, 7]), training=True)
        losses = model(**data, mode="loss")
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        history.append({key: float(loss.detach()) for key, loss in losses.items()})
    return history


def test_the_small_config_trains_as_its_twin():
    stock, ours = train(SMALL, 3), train(SMALL.with_name(f"{SMALL.stem}_batched.py"), 3)
    assert ours == stock and len(ours[0]) == 12
    assert all(math.isfinite(value) for losses in ours for value in losses.values())
