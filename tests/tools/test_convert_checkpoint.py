"""The converter writes a whole file or none."""

import torch
from launch import run_tool

from raggedbev.nuscenes import DETECTION_CLASSES, INFO_CLASSES


def test_tool(tmp_path):
    weights = {"img_roi_head.cls.weight": torch.rand(10, 8, 1, 1), "img_roi_head.cls.bias": torch.arange(10.0)}
    weights["img_neck.lateral_convs.0.conv.bias"] = torch.rand(4)
    torch.save({"state_dict": weights, "meta": {"epoch": 1}}, tmp_path / "published.pth")
    output = run_tool("tools/convert_checkpoint.py", tmp_path / "published.pth", tmp_path / "ours.pth")
    assert f"{len(weights)} weights" in output
    ours = torch.load(tmp_path / "ours.pth", weights_only=True)["state_dict"]
    assert ours["img_roi_head.cls.bias"].tolist() == [INFO_CLASSES.index(name) for name in DETECTION_CLASSES]
    again = run_tool("tools/convert_checkpoint.py", tmp_path / "published.pth", tmp_path / "ours.pth", expect=1)
    assert "exists already; nothing was written" in again
    (tmp_path / "broken.pth").write_bytes(b"not a checkpoint")
    broken = run_tool("tools/convert_checkpoint.py", tmp_path / "broken.pth", tmp_path / "x.pth", expect=1)
    assert "cannot be read as a checkpoint" in broken
    assert not (tmp_path / "x.pth").exists()
