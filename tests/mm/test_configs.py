"""Each batched config differs from its per-sample twin in `type=` values only."""

from pathlib import Path

import pytest
from mmengine.config import Config

CONFIGS = Path(__file__).parents[2] / "configs"
TWINS = sorted(CONFIGS.glob("streampetr/*_batched.py"))


def _differences(left, right, path=""):
    """Yield (path, left value, right value) wherever two nested configs differ."""
    if isinstance(left, dict) and isinstance(right, dict):
        for key in sorted(set(left) | set(right)):
            yield from _differences(left.get(key), right.get(key), f"{path}.{key}")
    elif isinstance(left, (list, tuple)) and isinstance(right, (list, tuple)) and len(left) == len(right):
        for i, (a, b) in enumerate(zip(left, right, strict=True)):
            yield from _differences(a, b, f"{path}[{i}]")
    elif left != right:
        yield path, left, right


def _load(path):
    return Config.fromfile(path, import_custom_modules=False).to_dict()


def test_every_model_config_has_a_twin():
    singles = {p.stem for p in CONFIGS.glob("streampetr/*.py") if not p.stem.endswith("_batched")}
    assert singles
    assert singles == {p.stem.removesuffix("_batched") for p in TWINS}


@pytest.mark.parametrize("path", TWINS, ids=lambda p: p.stem)
def test_twin_changes_types_only(path):
    per_sample = _load(path.with_name(path.name.replace("_batched", "")))
    differences = {p: (a, b) for p, a, b in _differences(per_sample, _load(path))}
    assert differences == {
        ".train_dataloader.collate_fn.type": ("pseudo_collate", "ragged_collate"),
        ".model.img_roi_head.type": ("PerSampleFocalHead", "BatchedFocalHead"),
        ".model.img_roi_head.train_cfg.assigner.type": ("PerSampleHungarianAssigner2D", "BatchedHungarianAssigner2D"),
        ".model.pts_bbox_head.type": ("PerSampleStreamPETRHead", "BatchedStreamPETRHead"),
        ".model.pts_bbox_head.train_cfg.assigner.type": ("PerSampleHungarianAssigner3D", "BatchedHungarianAssigner3D"),
    }


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("streampetr/*.py")), ids=lambda p: p.stem)
def test_config_opens_with_its_command(path):
    first = path.read_text().splitlines()[0]
    if path in TWINS:
        assert "type=" in first
    else:
        assert path.stem in first
