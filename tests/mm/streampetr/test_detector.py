"""The detector: streams, sliding windows, modes, precision, initialisation and bad input, on a tiny backbone."""

from __future__ import annotations

import copy
import logging
import math

import pytest
import torch
from mmdet3d.registry import MODELS
from mmdet3d.structures import Det3DDataSample, LiDARInstance3DBoxes
from mmengine.structures import InstanceData
from torch import nn

from raggedbev.losses import GroundTruth3D
from raggedbev.mm.streampetr.detector import StreamPETR, _downloadable, ground_truth_3d, token_location
from raggedbev.profiling.syncs import HostSyncCounter

from .golden_model import NECK, NUM_CAMERAS, PAD_SHAPE, ROI_HEAD, head_config

B, N = 2, NUM_CAMERAS
FRAME_KEYS = ("intrinsics", "lidar2img", "ego_pose", "ego_pose_inv", "timestamp", "prev_exists")


@MODELS.register_module(name="TinyBackbone", force=True)
class TinyBackbone(nn.Module):
    """Maps of strides 16 and 32 by two convolutions; remembers the type it computed in."""

    init_cfg = None

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 32, kernel_size=16, stride=16)
        self.second = nn.Conv2d(32, 48, kernel_size=2, stride=2)

    def forward(self, images):
        c4 = self.first(images)
        self.dtype = c4.dtype
        return c4, self.second(c4)


def build(seed=0, head=None, **changes):
    torch.manual_seed(seed)
    config = {
        "img_backbone": {"type": "TinyBackbone"},
        "img_neck": NECK,
        "img_roi_head": ROI_HEAD,
        "pts_bbox_head": head_config(**(head or {})),
    }
    return StreamPETR(**{**config, **changes})


def sample(num_objects=2, scene="a", time=0.0):
    """Annotations of a frame with ``num_objects`` in 3D and in every image."""
    out = Det3DDataSample(metainfo={"scene_token": scene, "timestamp": time})
    boxes = torch.rand(num_objects, 9) * 4 + 1
    labels = torch.arange(num_objects) % 10
    out.gt_instances_3d = InstanceData(bboxes_3d=LiDARInstance3DBoxes(boxes, box_dim=9), labels_3d=labels)
    corner = torch.rand(num_objects, 2) * 30
    image = InstanceData(bboxes=torch.cat([corner, corner + 20], dim=1), labels=labels, centers2d=corner + 10)
    out.gt_instances_2d = [image for _ in range(N)]
    return out


def inputs(batch_size=B, frames=None, seed=0, prev_exists=0.0, time=0.0):
    """What the preprocessor gives: geometry of ``frames`` frames (no frame dimension if None), 0.5 s apart."""
    generator = torch.Generator().manual_seed(seed)
    lead = (batch_size,) if frames is None else (batch_size, frames)
    seconds = torch.arange(frames or 1, dtype=torch.float64) * 0.5 + 1.5e9 + time
    intrinsics = torch.eye(4).repeat(*lead, N, 1, 1)
    intrinsics[..., 0, 0], intrinsics[..., 1, 1] = 50.0, 60.0
    intrinsics[..., :2, 2] = torch.tensor([48.0, 32.0])
    looking_along_x = torch.tensor([[0.0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0.5], [0, 0, 0, 1]])
    ego_pose = torch.eye(4).repeat(*lead, 1, 1)
    ego_pose[..., 0, 3] = seconds.float() - 1.5e9 + 100 if frames else 100.0 + time
    return {
        "img": torch.randn(*lead, N, 3, *PAD_SHAPE, generator=generator),
        "intrinsics": intrinsics,
        "lidar2img": intrinsics @ looking_along_x,
        "ego_pose": ego_pose,
        "ego_pose_inv": torch.linalg.inv(ego_pose),
        "timestamp": seconds.expand(lead).clone() if frames else torch.full(lead, seconds[0].item()).double(),
        "prev_exists": torch.full(lead, prev_exists),
        "pad_shape": PAD_SHAPE,
    }


def frame_of(windows, index):
    """One frame of windows as streaming input."""
    return {k: v[:, index] if isinstance(v, torch.Tensor) else v for k, v in windows.items()}


def memory_of(model):
    state = model.pts_bbox_head.memory.state
    return [getattr(state, name) for name in ("embedding", "reference_point", "timestamp", "egopose", "velo")]


def assert_same_memory(left, right):
    torch.testing.assert_close(memory_of(left), memory_of(right), rtol=1e-5, atol=1e-5)


class TestStreaming:
    def test_a_step_trains_every_part(self):
        model = build(use_grid_mask=True)
        losses = model(inputs(), [sample(3), sample(0)], mode="loss")
        image_losses = {"enc_cls_scores_loss", "enc_bbox_preds_loss", "pred_centers2d_loss", "centerness_loss"}
        assert set(losses) == {"loss_cls", "loss_bbox", "dn_loss_cls"} | image_losses
        sum(losses.values()).backward()
        without = {name for name, p in model.named_parameters() if p.requires_grad and p.grad is None}
        assert without == set()

    def test_the_second_frame_sees_the_first(self):
        model = build()
        model(inputs(), [sample(), sample()], mode="loss")
        second = inputs(seed=1, prev_exists=1.0, time=0.5)
        carried = copy.deepcopy(model)._forward(second)["all_cls_scores"]
        fresh = copy.deepcopy(model)._forward({**second, "prev_exists": torch.zeros(B)})["all_cls_scores"]
        assert (carried - fresh).abs().max() > 1e-3
        mixed = copy.deepcopy(model)._forward({**second, "prev_exists": torch.tensor([1.0, 0.0])})["all_cls_scores"]
        torch.testing.assert_close(mixed[:, 0], carried[:, 0])
        torch.testing.assert_close(mixed[:, 1], fresh[:, 1])

    def test_missing_state_starts_a_scene(self):
        batch = inputs()
        fresh = build()._forward(batch)["all_bbox_preds"]
        claimed = build()._forward({**batch, "prev_exists": torch.ones(B)})["all_bbox_preds"]
        assert torch.equal(claimed, fresh)

    def test_another_batch_size_starts_scenes(self):
        model = build()
        model._forward(inputs())
        assert torch.equal(
            model._forward(inputs(1, prev_exists=1.0))["all_cls_scores"], build()._forward(inputs(1))["all_cls_scores"]
        )

    def test_nan_ends_with_the_scene(self):
        model = build()
        model._forward(inputs())
        for part in memory_of(model):
            part[0] = float("nan")
        batch = {**inputs(seed=1, time=0.5), "prev_exists": torch.tensor([0.0, 1.0])}
        assert model._forward(batch)["all_bbox_preds"].isfinite().all()
        assert all(part.isfinite().all() for part in memory_of(model))

    def test_the_memory_is_detached_and_not_saved(self):
        model = build()
        names = set(model.state_dict())
        model(inputs(), [sample(), sample()], mode="loss")
        assert not any(part.requires_grad for part in memory_of(model))
        assert set(model.state_dict()) == names
        copy.deepcopy(model)

    @pytest.mark.parametrize("counts", [(0, 0), (0, 60), (1, 41)])
    def test_any_number_of_objects(self, counts):
        losses = build()(inputs(), [sample(count) for count in counts], mode="loss")
        assert all(loss.isfinite() for loss in losses.values())

    def test_without_2d_head_and_without_denoising(self):
        model = build(img_roi_head=None, head={"scalar": 0})
        assert set(model(inputs(), [sample(), sample()], mode="loss")) == {"loss_cls", "loss_bbox"}

    def test_one_camera(self):
        batch = inputs()
        for key in ("img", "intrinsics", "lidar2img"):
            batch[key] = batch[key][:, :1]
        assert build()._forward(batch)["all_cls_scores"].shape == (2, B, 56, 10)


class TestWindows:
    COUNTS = {"num_frame_head_grads": 2, "num_frame_backbone_grads": 1, "num_frame_losses": 1}  # noqa: RUF012

    def windows(self):
        batch = inputs(frames=4, prev_exists=1.0)
        batch["prev_exists"][:, 0] = 0
        return batch, [[sample(time=float(t)) for t in range(4)] for _ in range(B)]

    def test_loss_keys_and_gradients(self):
        model = build(**self.COUNTS)
        batch, samples = self.windows()
        batch["img"].requires_grad_()
        losses = model(batch, samples, mode="loss")
        assert all(key.startswith("frame_3_") for key in losses)
        assert {"frame_3_loss_cls", "frame_3_dn_loss_cls", "frame_3_centerness_loss"} <= set(losses)
        sum(losses.values()).backward()
        by_frame = batch["img"].grad.abs().amax(dim=(0, 2, 3, 4, 5))
        assert by_frame[:3].max() == 0 and by_frame[3] > 0

    def test_losses_of_several_frames(self):
        model = build(num_frame_head_grads=2, num_frame_backbone_grads=3, num_frame_losses=2)
        batch, samples = self.windows()
        losses = model(batch, samples, mode="loss")
        assert {key[:8] for key in losses} == {"frame_2_", "frame_3_"}

    def test_equals_the_frames_one_by_one(self):
        batch, samples = self.windows()
        window_model, stream_model = build(**self.COUNTS), build()
        losses = window_model(batch, samples, mode="loss")
        for t in range(3):
            stream_model(frame_of(batch, t), [s[t] for s in samples], mode="loss")
        single = stream_model(frame_of(batch, 3), [s[3] for s in samples], mode="loss")
        assert_same_memory(window_model, stream_model)
        for key in ("loss_cls", "loss_bbox", "centerness_loss"):
            torch.testing.assert_close(losses["frame_3_" + key], single[key], rtol=1e-4, atol=1e-5)

    def test_earlier_frames_run_in_eval_mode(self):
        transformer = {**head_config()["transformer"], "dropout": 0.5}
        batch, samples = self.windows()
        memories = []
        for seed in (1, 2):
            model = build(head={"transformer": transformer})
            modes = [part.training for part in model.modules()]
            torch.manual_seed(seed)
            model(batch, samples, mode="loss")
            memories.append(memory_of(model))
            assert [part.training for part in model.modules()] == modes
        first, second = memories
        assert (first[0][:, :16] - second[0][:, :16]).abs().max() > 1e-3  # the last frame has dropout
        torch.testing.assert_close(first[0][:, 16:], second[0][:, 16:])  # those before have not

    def test_too_short(self):
        batch, samples = self.windows()
        short = {k: v[:, :1] if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
        with pytest.raises(ValueError, match=r"at least 2 frames .* got 1"):
            build(**self.COUNTS)(short, [s[:1] for s in samples], mode="loss")


class TestModes:
    def predict(self, model, scene, time, seed=0):
        batch = inputs(1, seed=seed, time=time)
        return model(batch, [sample(scene=scene, time=time)], mode="predict")[0]

    def test_results(self):
        model = build().eval()
        with torch.no_grad():
            result = self.predict(model, "a", 0.0)
        found = result.pred_instances_3d
        assert isinstance(found.bboxes_3d, LiDARInstance3DBoxes)
        assert len(found.bboxes_3d) == len(found.scores_3d) == len(found.labels_3d) > 0
        assert "pred_instances" in result
        assert (found.scores_3d.diff() <= 0).all()
        assert (found.bboxes_3d.gravity_center.abs() <= torch.tensor([35.001, 35.001, 4.001])).all()

    def test_no_result_in_range(self):
        coder = {**head_config()["bbox_coder"], "post_center_range": [900, 900, 900, 901, 901, 901]}
        found = self.predict(build(head={"bbox_coder": coder}).eval(), "a", 0.0).pred_instances_3d
        assert found.bboxes_3d.tensor.shape == (0, 9) and len(found.scores_3d) == 0

    def test_boxes_stand_on_their_bottom_centre(self):
        head = build().pts_bbox_head
        code = torch.tensor([1.0, 2.0, -3.9, math.log(4.0), math.log(2.0), math.log(1.5), 0.5, 0.5, 7.0, 8.0])
        logits = torch.full((1, 1, 1, 10), -5.0)
        logits[..., 4] = 3.0
        boxes, scores, labels = head.predict({"all_cls_scores": logits, "all_bbox_preds": code.expand(1, 1, 1, 10)})[0]
        expected = torch.tensor([1.0, 2.0, -3.9 - 0.75, 4.0, 2.0, 1.5, math.pi / 4, 7.0, 8.0])
        torch.testing.assert_close(boxes, expected.expand(10, 9))  # kept: the centre counts, not the bottom, below -4
        assert labels[0] == 4 and scores[0] == torch.tensor(3.0).sigmoid()

    def test_follows_a_stream_until_its_scene_ends(self):
        model = build().eval()
        alone = [self.predict(build().eval(), "b", 1.0, seed=1).pred_instances_3d.scores_3d]
        first = self.predict(model, "a", 0.0).pred_instances_3d.scores_3d
        second = self.predict(model, "a", 0.5).pred_instances_3d.scores_3d
        assert not torch.equal(first, second)
        new_scene = self.predict(model, "b", 1.0, seed=1).pred_instances_3d.scores_3d
        torch.testing.assert_close(new_scene, alone[0])
        again = self.predict(model, "b", 1.0, seed=1).pred_instances_3d.scores_3d  # the same scene anew
        torch.testing.assert_close(again, alone[0])

    def test_a_switch_of_mode_drops_the_memory(self):
        model = build()
        model(inputs(), [sample(), sample()], mode="loss")
        model.train()
        assert model.pts_bbox_head.memory.state is not None
        model.eval()
        assert model.pts_bbox_head.memory.state is None
        before = self.predict(model, "a", 0.0).pred_instances_3d.scores_3d
        model.train()
        assert model.pts_bbox_head.memory.state is None
        model(inputs(1), [sample()], mode="loss")
        model.eval()
        after = self.predict(model, "a", 0.0).pred_instances_3d.scores_3d  # its scene ended the last test
        torch.testing.assert_close(after, before)

    def test_tensor_mode(self):
        outs = build()(inputs(), None, mode="tensor")
        assert outs["all_cls_scores"].shape == (2, B, 56, 10) and outs["all_bbox_preds"].shape == (2, B, 56, 10)

    def test_bad_samples(self):
        model = build().eval()
        with pytest.raises(ValueError, match="batch size must be 1, got 2"):
            model(inputs(), [sample(), sample()], mode="predict")
        with pytest.raises(ValueError, match="need scene_token and timestamp in their metainfo"):
            model(inputs(1), [Det3DDataSample()], mode="predict")


def test_mixed_precision_covers_backbone_and_neck_only():
    model = build()
    seen = []
    model.pts_bbox_head.transformer.register_forward_hook(lambda _, args, out: seen.append((args[0].dtype, out.dtype)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(inputs(), [sample(), sample()], mode="loss")
    assert model.img_backbone.dtype == torch.bfloat16
    assert seen == [(torch.float32, torch.float32)]
    assert all(loss.dtype == torch.float32 for loss in losses.values())


def test_images_in_bfloat16_without_a_scaler():
    model = build(image_dtype="bfloat16")
    losses = model(inputs(), [sample(), sample()], mode="loss")
    assert model.img_backbone.dtype == torch.bfloat16
    assert all(loss.dtype == torch.float32 for loss in losses.values())
    with pytest.raises(ValueError, match="image_dtype must be None or 'bfloat16', got 'float16'"):
        build(image_dtype="float16")


def test_the_forward_pass_never_waits_for_the_device(device):
    head = build().pts_bbox_head.to(device)
    feats = torch.randn(B, N, 64, 4, 6, device=device)
    location = token_location(4, 6, 16, PAD_SHAPE, device)
    gt = ground_truth_3d([sample(3), sample(1)])
    gt = GroundTruth3D([x.to(device) for x in gt.box_list], [x.to(device) for x in gt.label_list])
    frames = [inputs(seed=0), inputs(seed=1, prev_exists=1.0, time=0.5)]
    frames = [{k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in frame.items()} for frame in frames]
    head(feats, location, frames[0], gt=gt)
    with HostSyncCounter(device.type) as syncs:
        head(feats, location, frames[1], gt=gt)
    assert syncs.count == 0, syncs.by_kind


def test_the_head_compiles_as_one_graph():
    head = build().pts_bbox_head
    plain = copy.deepcopy(head)
    compiled = torch.compile(head, fullgraph=True, backend="eager")
    feats, location = torch.randn(B, N, 64, 4, 6), token_location(4, 6, 16, PAD_SHAPE, torch.device("cpu"))
    gt = ground_truth_3d([sample(3), sample(1)])
    packed = (gt.boxes.mask, gt.labels.mask)  # made before compiling, as a loader's worker does
    noise = torch.rand(3, *packed[0].shape, 3)
    for frame in (inputs(), inputs(prev_exists=1.0, time=0.5)):
        outs, expected = (module(feats, location, frame, gt=gt, dn_uniform=noise) for module in (compiled, plain))
        torch.testing.assert_close(outs["all_bbox_preds"], expected["all_bbox_preds"])
        torch.testing.assert_close(outs["dn"].cls_logits, expected["dn"].cls_logits)


def test_token_location():
    location = token_location(4, 6, 16, PAD_SHAPE, torch.device("cpu"))
    assert location.shape == (4, 6, 2) and location.dtype == torch.float32
    torch.testing.assert_close(location[1, 2], torch.tensor([40 / 96, 24 / 64]))


class TestConstruction:
    def test_counts(self):
        with pytest.raises(ValueError, match=r"num_frame_losses must lie in 1..num_frame_head_grads=1, got 2"):
            build(num_frame_losses=2)
        with pytest.raises(ValueError, match="num_frame_backbone_grads must be at least 1, got 0"):
            build(num_frame_backbone_grads=0)

    def test_strides(self):
        with pytest.raises(ValueError, match="stride=8, got 16"):
            build(stride=8)

    @pytest.mark.parametrize("part", ["img_roi_head", "pts_bbox_head", "img_neck"])
    def test_unknown_key(self, part):
        config = {"img_roi_head": ROI_HEAD, "pts_bbox_head": head_config(), "img_neck": NECK}[part]
        with pytest.raises(TypeError, match="num_querry"):
            build(**{part: {**config, "num_querry": 1}})

    def test_unknown_key_of_the_detector(self):
        with pytest.raises(TypeError, match="use_gridmask"):
            build(use_gridmask=True)


def resnet(init_cfg):
    return {
        "type": "mmdet.ResNet",
        "depth": 18,
        "out_indices": (2, 3),
        "norm_cfg": {"type": "BN2d"},
        "norm_eval": False,
        "init_cfg": init_cfg,
    }


class TestBackboneWeights:
    @pytest.fixture
    def messages(self, monkeypatch):
        said = []

        def record(text, logger, level=logging.INFO):
            said.append((level, text))

        monkeypatch.setattr("raggedbev.mm.streampetr.detector.print_log", record)
        return said

    def build(self, init_cfg):
        neck = {**NECK, "in_channels": [256, 512]}
        return build(img_backbone=resnet(init_cfg), img_neck=neck)

    def test_missing_checkpoint_trains_from_scratch(self, messages, tmp_path):
        model = self.build({"type": "Pretrained", "checkpoint": str(tmp_path / "none.pth")})
        model.init_weights()
        level, text = messages[0]
        assert level == logging.WARNING and "starts from random weights" in text and "none.pth" in text
        assert model.img_backbone.conv1.weight.std() > 0 and (model.img_backbone.bn1.weight == 1).all()
        assert model(inputs(), [sample(), sample()], mode="loss")["loss_cls"].isfinite()

    def test_recomputing_backbone_is_quiet(self):
        neck = {**NECK, "in_channels": [256, 512]}
        model = build(img_backbone={**resnet(None), "with_cp": True}, img_neck=neck)
        losses = model(inputs(), [sample(), sample()], mode="loss")  # warnings are errors here
        sum(losses.values()).backward()
        assert model.img_backbone.conv1.weight.grad.abs().max() > 0

    def test_no_checkpoint(self, messages):
        model = self.build(None)
        model.init_weights()
        text = "The image backbone starts from random weights: its init_cfg names no checkpoint."
        assert messages == [(logging.INFO, text)]
        model.img_backbone.norm_eval = True
        model.init_weights()
        assert messages[1][0] == logging.WARNING and "batch norms stay as they are" in messages[1][1]

    def test_torchvision_models_without_torchvision(self, monkeypatch):
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        address = _downloadable("torchvision://resnet50")
        assert address.startswith("https://") and "resnet50" in address
        assert _downloadable("torchvision://of-tomorrow") == "torchvision://of-tomorrow"
        assert _downloadable("weights/resnet50.pth") == "weights/resnet50.pth"

    def test_checkpoint(self, messages, tmp_path):
        source = self.build(None).img_backbone
        torch.save(source.state_dict(), tmp_path / "weights.pth")
        model = self.build({"type": "Pretrained", "checkpoint": str(tmp_path / "weights.pth")})
        nn.init.zeros_(model.img_backbone.conv1.weight)
        model.init_weights()
        assert messages == []
        assert torch.equal(model.img_backbone.conv1.weight, source.conv1.weight)
