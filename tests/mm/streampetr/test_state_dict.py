"""Names, shapes and initial values of the weights of the published R50 setting."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from mmdet3d.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope

from . import golden_model  # noqa: F401 - registers heads without assignment

CONFIG = Path(__file__).parents[3] / "configs" / "_base_" / "streampetr_r50.py"
C, Q, P, D, CLASSES = 256, 644, 256, 64, 10


def linear(name, out, inputs):
    return {f"{name}.weight": (out, inputs), f"{name}.bias": (out,)}


def conv(name, out, inputs, kernel):
    return {f"{name}.weight": (out, inputs, kernel, kernel), f"{name}.bias": (out,)}


def norm(name):
    return {f"{name}.weight": (C,), f"{name}.bias": (C,)}


def resnet50():
    """Entries of the backbone, as torchvision names them."""
    entries = {"conv1.weight": (64, 3, 7, 7)}

    def batch_norm(name, channels):
        entries.update({f"{name}.{part}": (channels,) for part in ("weight", "bias", "running_mean", "running_var")})
        entries[f"{name}.num_batches_tracked"] = ()

    batch_norm("bn1", 64)
    inputs = 64
    for stage, (blocks, width) in enumerate(((3, 64), (4, 128), (6, 256), (3, 512)), start=1):
        for i in range(blocks):
            block = f"layer{stage}.{i}"
            for j, (out, channels, kernel) in enumerate(
                ((width, inputs, 1), (width, width, 3), (4 * width, width, 1)), start=1
            ):
                entries[f"{block}.conv{j}.weight"] = (out, channels, kernel, kernel)
                batch_norm(f"{block}.bn{j}", out)
            if i == 0:
                entries[f"{block}.downsample.0.weight"] = (4 * width, inputs, 1, 1)
                batch_norm(f"{block}.downsample.1", 4 * width)
            inputs = 4 * width
    return {f"img_backbone.{name}": shape for name, shape in entries.items()}


def image_side():
    entries = {}
    for i, channels in enumerate((1024, 2048)):
        entries |= conv(f"img_neck.lateral_convs.{i}.conv", C, channels, 1)
    entries |= conv("img_neck.fpn_convs.0.conv", C, C, 3)
    for tower in ("shared_cls", "shared_reg"):
        entries |= conv(f"img_roi_head.{tower}.0", C, C, 3) | norm(f"img_roi_head.{tower}.1")
    for name, out in (("cls", CLASSES), ("centerness", 1), ("ltrb", 4), ("center2d", 2)):
        entries |= conv(f"img_roi_head.{name}", out, C, 1)
    return entries


def head():
    entries = {"code_weights": (10,), "match_costs": (10,), "pc_range": (6,), "position_range": (6,), "coords_d": (D,)}
    entries |= {"reference_points.weight": (Q, 3), "pseudo_reference_points.weight": (P, 3)}
    for i in range(6):
        cls, reg = f"cls_branches.{i}", f"reg_branches.{i}"
        entries |= linear(f"{cls}.0", C, C) | norm(f"{cls}.1") | linear(f"{cls}.3", C, C) | norm(f"{cls}.4")
        entries |= linear(f"{cls}.6", CLASSES, C)
        entries |= linear(f"{reg}.0", C, C) | linear(f"{reg}.2", C, C) | linear(f"{reg}.4", 10, C)
    entries |= linear("position_encoder.0", 4 * C, 3 * D) | linear("position_encoder.2", C, 4 * C)
    entries |= linear("memory_embed.0", C, C) | linear("memory_embed.2", C, C)
    entries |= linear("featurized_pe.conv_reduce", C, C) | linear("featurized_pe.conv_expand", C, C)
    entries |= linear("query_embedding.0", C, 384) | linear("query_embedding.2", C, C)
    entries |= linear("time_embedding.0", C, C) | norm("time_embedding.1")
    for name, condition in (("spatial_alignment", 8), ("ego_pose_pe", 180), ("ego_pose_memory", 180)):
        entries |= (
            linear(f"{name}.reduce.0", C, condition) | linear(f"{name}.gamma", C, C) | linear(f"{name}.beta", C, C)
        )
    for i in range(6):
        layer = f"transformer.decoder.layers.{i}"
        for j in range(2):
            attention = f"{layer}.attentions.{j}.attn"
            entries |= {f"{attention}.in_proj_weight": (3 * C, C), f"{attention}.in_proj_bias": (3 * C,)}
            entries |= linear(f"{attention}.out_proj", C, C)
        entries |= linear(f"{layer}.ffns.0.layers.0.0", 2048, C) | linear(f"{layer}.ffns.0.layers.1", C, 2048)
        for j in range(3):
            entries |= norm(f"{layer}.norms.{j}")
    entries |= norm("transformer.decoder.post_norm")
    return {f"pts_bbox_head.{name}": shape for name, shape in entries.items()}


@pytest.fixture(scope="module")
def model():
    """The published R50 model with heads that need no assigner."""
    config = Config.fromfile(CONFIG, import_custom_modules=False).model
    config.pop("data_preprocessor")
    config.img_roi_head.type, config.pts_bbox_head.type = "SumFocalHead", "SumStreamPETRHead"
    config.img_backbone.init_cfg = None
    init_default_scope("mmdet3d")
    torch.manual_seed(0)
    return MODELS.build(config)


def test_entries(model):
    expected = resnet50() | image_side() | head()
    assert len(expected) == 591
    assert {name: tuple(value.shape) for name, value in model.state_dict().items()} == expected


def test_trainable_parameters(model):
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) / 1e6 == pytest.approx(37.2, abs=0.05)
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad and not n.startswith("img_backbone")}
    names = ("code_weights", "match_costs", "pc_range", "position_range", "coords_d", "pseudo_reference_points.weight")
    assert frozen == {f"pts_bbox_head.{name}" for name in names}


def test_branches_are_aliases(model):
    for branches in (model.pts_bbox_head.cls_branches, model.pts_bbox_head.reg_branches):
        assert len(branches) == 6 and all(branch is branches[0] for branch in branches)


def test_depth_bins(model):
    i = torch.arange(D)
    torch.testing.assert_close(model.pts_bbox_head.coords_d.data, 1 + i * (i + 1) * (61.2 - 1) / (D * (D + 1)))


class TestInitialValues:
    def test_priors(self, model):
        for layer in (model.pts_bbox_head.cls_branches[0][-1], model.img_roi_head.cls, model.img_roi_head.centerness):
            torch.testing.assert_close(layer.bias.data, torch.full_like(layer.bias, -math.log(99)))

    def test_modulated_norms_start_plain(self, model):
        head = model.pts_bbox_head
        for layer in (head.spatial_alignment, head.ego_pose_pe, head.ego_pose_memory):
            condition = torch.randn(5, layer.reduce[0].in_features)
            x = torch.randn(5, C)
            torch.testing.assert_close(layer(x, condition), torch.nn.functional.layer_norm(x, (C,)))

    def test_reference_tables(self, model):
        for table in (model.pts_bbox_head.reference_points, model.pts_bbox_head.pseudo_reference_points):
            assert 0 <= table.weight.min() < 0.05 and 0.95 < table.weight.max() <= 1

    def test_xavier(self, model):
        layer = model.pts_bbox_head.transformer.decoder.layers[3]
        matrices = [layer.attentions[1].attn.in_proj_weight, layer.attentions[0].attn.out_proj.weight]
        matrices += [layer.ffns[0].layers[0][0].weight, layer.ffns[0].layers[1].weight]
        matrices += [model.img_neck.lateral_convs[1].conv.weight, model.img_neck.fpn_convs[0].conv.weight]
        for matrix in matrices:
            fan_out, fan_in = (size * matrix[0, 0].numel() for size in matrix.shape[:2])
            bound = math.sqrt(6 / (fan_in + fan_out))
            assert 0.99 * bound < matrix.abs().max() <= bound
        for name, parameter in model.pts_bbox_head.transformer.named_parameters():
            if name.endswith("bias"):
                assert (parameter == 0).all(), name
        assert all((lateral.conv.bias == 0).all() for lateral in model.img_neck.lateral_convs)

    def test_init_weights_keeps_them(self, model):
        before = {name: value.clone() for name, value in model.state_dict().items() if "backbone" not in name}
        model.init_weights()
        assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
