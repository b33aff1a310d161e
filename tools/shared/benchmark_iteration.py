"""Iteration scope of the benchmark: an mm config in, training steps of its per-sample and its batched version out.

Both versions start from the same weights and see the same batches. Needs the mm packages; see
`tools/benchmark_loss.py`.
"""

from __future__ import annotations

import copy
import functools
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmdet3d.registry import MODELS
from mmdet3d.structures import Det3DDataSample, LiDARInstance3DBoxes
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from mmengine.runner import Runner, load_checkpoint
from mmengine.structures import InstanceData

from raggedbev.mm.engine import allow_checkpoint_globals
from raggedbev.profiling import stage
from raggedbev.profiling.report import DATA, FORWARD, HEAD_2D, HEAD_3D, ITERATION, LOSS, OPTIMIZATION
from raggedbev.workloads.generate import LossSizes, Objects
from raggedbev.workloads.losses import LossSettings

PER_SAMPLE, BATCHED = "PerSample", "Batched"
HEADS = ("pts_bbox_head", "img_roi_head")
_RIG = ((0.0, 1266.0), (-55.0, 1260.0), (55.0, 1262.0), (180.0, 809.0), (108.0, 1257.0), (-110.0, 1259.0))


def load_config(path: str | Path) -> Config:
    """Reads an mm config and registers what it names."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"no config file {path}; the configs are in configs/")
    config = Config.fromfile(str(path))
    init_default_scope(config.get("default_scope", "mmdet3d"))
    if not MMLogger.check_instance_created("benchmark"):  # the optimiser's builder lists every parameter otherwise
        MMLogger.get_instance("benchmark", log_level="ERROR")
    return config


def sizes_of(config: Config) -> LossSizes:
    """Sizes of the loss problem that a StreamPETR config poses.

    Raises:
        ValueError: The config has no StreamPETR heads or no `ida_aug_conf` in its training pipeline.
    """
    head = config.model.get("pts_bbox_head", {})
    if "num_query" not in head or "transformer" not in head:
        raise ValueError(
            f"{config.filename} is no StreamPETR config: model.pts_bbox_head needs num_query and transformer"
        )
    steps = config.train_dataloader.dataset.pipeline
    image_size = next((step["ida_aug_conf"]["final_dim"] for step in steps if "ida_aug_conf" in step), None)
    if image_size is None:
        raise ValueError(f"{config.filename}: no transform of the training pipeline has ida_aug_conf with final_dim")
    return LossSizes(
        num_query=head.num_query + head.get("num_propagated", 0),
        num_layers=head.transformer.num_layers,
        image_size=tuple(image_size),
        stride=config.model.get("stride", 16),
        num_classes=head.num_classes,
        dn_groups=head.get("scalar", 10),
        pc_range=tuple(head.pc_range),
    )


def settings_of(config: Config) -> LossSettings:
    """Weights, costs and assigners of a StreamPETR config, as its heads read them.

    Raises:
        ValueError: The heads are not this package's, or have no assigner.
    """
    model = twin(config.model, batched=True)
    heads = [MODELS.build(copy.deepcopy(model[name])) for name in ("pts_bbox_head", "img_roi_head") if name in model]
    if len(heads) != 2 or not all(hasattr(head, "loss_config") and head.assigner is not None for head in heads):
        raise ValueError(f"{config.filename} must have PerSample or Batched StreamPETR and Focal heads with assigners")
    head_3d, head_2d = heads
    with torch.no_grad():
        settings_3d = head_3d.loss_config()
    return LossSettings(settings_3d, head_2d.loss_config, head_3d.assigner.config, head_2d.assigner.config)


def twin(model: Mapping[str, Any], batched: bool) -> dict[str, Any]:
    """The model config with its heads and assigners swapped: `PerSampleX` to `BatchedX` types, or back."""
    old, new = (PER_SAMPLE, BATCHED) if batched else (BATCHED, PER_SAMPLE)

    def swap(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {k: _swap_type(v, old, new) if k == "type" else swap(v) for k, v in value.items()}
        return [swap(v) for v in value] if isinstance(value, list | tuple) else value

    return swap(model)


def _swap_type(name: Any, old: str, new: str) -> Any:
    return new + name.removeprefix(old) if isinstance(name, str) and name.startswith(old) else name


class IterationArm:
    """One version of the model with its optimiser; calling it makes one training step with marked stages.

    Args:
        model_config: Config of the model.
        optim_config: Config of the optimiser wrapper.
        device: Where it trains.
        seed: Seed of the weights, and with the step number of everything drawn during a step.
    """

    def __init__(
        self, model_config: Mapping[str, Any], optim_config: Mapping[str, Any], device: torch.device, seed: int
    ) -> None:
        _seed_all(seed)
        self.model = MODELS.build(_without_pretrained(copy.deepcopy(dict(model_config)))).to(device)
        self.model.init_weights()
        self.model.train()
        self.optim = build_optim_wrapper(self.model, copy.deepcopy(optim_config))
        self.batches: list[dict[str, Any]] = []
        self.stream: Iterator[dict[str, Any]] | None = None
        self.seed = seed
        self.steps = 0
        self._mark_stages()

    def losses(self) -> dict[str, float]:
        """Losses of all batches without training; the streams start anew before and after them."""
        found: dict[str, float] = {}
        self.model.reset_memory()
        for number, batch in enumerate(self.batches):
            _seed_all(self.seed + number)
            data = self.model.data_preprocessor(copy.deepcopy(batch), True)
            with torch.no_grad():
                losses = self.model(**data, mode="loss")
            found |= {f"{key} of batch {number}": float(value) for key, value in losses.items()}
        self.model.reset_memory()
        return found

    def warm_up(self) -> None:
        """One training step on each batch: what is captured or compiled for its shapes is not timed."""
        for _ in self.batches:
            self()

    def __call__(self) -> None:
        """One training step on the next batch: of the stream, which is then part of the step, else of `batches`."""
        _seed_all(self.seed + self.steps)
        batch = None if self.stream else copy.deepcopy(self.batches[self.steps % len(self.batches)])
        self.steps += 1
        with stage(ITERATION):
            if self.stream:
                with stage(DATA):
                    batch = next(self.stream)
            self.model.train_step(batch, self.optim)

    def _mark_stages(self) -> None:
        heads = {"pts_bbox_head": HEAD_3D, "img_roi_head": HEAD_2D}
        _mark(self.model, "forward", FORWARD)
        for attribute, name in heads.items():
            head = getattr(self.model, attribute, None)
            if head is not None:
                _mark(head, "loss", LOSS, name)
        _mark(self.optim, "update_params", OPTIMIZATION)
        _mark(self.optim, "backward", "backward")
        _mark(self.optim, "step", "step")


def build_arms(
    config: Config,
    device: torch.device,
    batches: list[dict[str, Any]],
    seed: int,
    checkpoint: str | None = None,
    names: Sequence[str] | None = None,
) -> dict[str, IterationArm]:
    """The per-sample versions (arms `published`, `reference`) and the batched ones, with the same weights and batches.

    Args:
        config: Either version.
        device: Where they train.
        batches: What they go through in turn.
        seed: Seed of weights and steps.
        checkpoint: File of weights to start from; default: new weights.
        names: Arms that are wanted; default: the first three of `ARMS`.

    Raises:
        FileNotFoundError: There is no such checkpoint.
    """
    if checkpoint is not None and not Path(checkpoint).is_file():
        raise FileNotFoundError(f"no checkpoint file {checkpoint}")
    arms = {}
    for name in names or tuple(ARMS)[:3]:
        arms[name] = IterationArm(ARMS[name](config.model), config.optim_wrapper, device, seed)
    first = next(iter(arms.values())).model
    if checkpoint is not None:
        allow_checkpoint_globals()
        load_checkpoint(first, checkpoint, map_location=device, strict=True)
    for arm in arms.values():
        arm.model.load_state_dict(first.state_dict())
        arm.batches = batches
    return arms


def _published(model: Mapping[str, Any]) -> dict[str, Any]:
    return twin(model, batched=False)


def _reference(model: Mapping[str, Any]) -> dict[str, Any]:
    """A per-sample model config whose assigners, and through them the 2D head, are the `reference` arm."""
    model = twin(model, batched=False)
    for head in HEADS:
        if head in model:
            model[head]["train_cfg"]["assigner"]["arm"] = "reference"
    return model


def _batched(model: Mapping[str, Any], **options: Any) -> dict[str, Any]:
    """The batched model config, with options for both heads."""
    model = twin(model, batched=True)
    for head in HEADS:
        if head in model:
            model[head].update(options)
    return model


# Exact lengths: the denoising noise, which depends on the padded length, is that of the other arms.
_EXACT = {"padded_sizes": [1]}
ARMS: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "published": _published,
    "reference": _reference,
    "batched": _batched,
    "batched+graph": functools.partial(_batched, loss_graph=True, **_EXACT),
    "batched+compile": functools.partial(_batched, loss_compile=True, **_EXACT),
}
"""Arm name to the arm's model config, from that of any version."""


def dataset_batches(config: Config, batch_size: int, count: int, seed: int) -> list[dict[str, Any]]:
    """The first batches of the config's training data."""
    stream = dataset_stream(config, batch_size, seed)
    return [next(stream) for _ in range(count)]


def dataset_stream(
    config: Config, batch_size: int, seed: int, published: bool | None = None
) -> Iterator[dict[str, Any]]:
    """The config's training data, loaded in this process when it is asked for.

    Args:
        config: With a `train_dataloader`.
        batch_size: Samples.
        seed: Of the sampler.
        published: True: images by OpenCV and Pillow, ground truth not packed, as the published code has it; False:
            ground truth packed; None: as the config says.
    """
    loader = copy.deepcopy(config.train_dataloader)
    loader.update(batch_size=batch_size, num_workers=0, persistent_workers=False)
    loader.pop("prefetch_factor", None)
    if published is not None:
        loader.collate_fn = dict(type="pseudo_collate" if published else "ragged_collate")
    if published:
        loader.dataset.pipeline = [published_loading(step) for step in loader.dataset.pipeline]
    return iter(Runner.build_dataloader(loader, seed=seed))


def published_loading(step: Mapping[str, Any]) -> dict[str, Any]:
    """The transform of the published pipeline that a fast one stands for; others stay."""
    stands_for = {
        "LoadMultiViewImageTurbo": ("LoadMultiViewImages", ("backend_args",)),
        "StreamPETRResizeCropFlipTurbo": ("StreamPETRResizeCropFlip", ("ida_aug_conf", "training", "min_box_size")),
    }
    if step["type"] not in stands_for:
        return dict(step)
    name, arguments = stands_for[step["type"]]
    return {"type": name, **{key: step[key] for key in arguments if key in step}}


def synthetic_batches(objects: Iterator[Objects], sizes: LossSizes, count: int, seed: int) -> list[dict[str, Any]]:
    """Consecutive frames of made-up streams: noise images, a nuScenes-like rig, drawn ground truth.

    Args:
        objects: Ground truth of each batch.
        sizes: Image size and cameras.
        count: Batches.
        seed: Seed of the images.
    """
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for frame, truth in zip(range(count), objects, strict=False):
        samples = [_data_sample(truth, index, frame, sizes) for index in range(len(truth.boxes))]
        shape = (sizes.num_cameras, 3, *sizes.image_size)
        images = [torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator) for _ in samples]
        batches.append({"inputs": {"img": images}, "data_samples": samples})
    return batches


def _data_sample(truth: Objects, index: int, frame: int, sizes: LossSizes) -> Det3DDataSample:
    """Ground truth and geometry of one sample as the training pipeline packs them."""
    sample = Det3DDataSample()
    boxes = LiDARInstance3DBoxes(truth.boxes[index], box_dim=9, origin=(0.5, 0.5, 0.5))
    sample.gt_instances_3d = InstanceData(bboxes_3d=boxes, labels_3d=truth.labels[index])
    first = index * sizes.num_cameras
    sample.gt_instances_2d = [
        InstanceData(bboxes=box, labels=label, centers2d=center, depths=torch.full((len(box),), 20.0))
        for box, label, center in zip(
            *(
                x[first : first + sizes.num_cameras]
                for x in (truth.image_boxes, truth.image_labels, truth.image_centers)
            ),
            strict=True,
        )
    ]
    pose = np.eye(4)
    pose[0, 3] = 2.5 * frame
    sample.set_metainfo(
        {
            **_rig(sizes),
            "ego_pose": pose,
            "ego_pose_inv": np.linalg.inv(pose),
            "timestamp": 1.5e9 + 0.5 * frame,
            "prev_exists": frame > 0,
            "scene_token": f"scene-{index}",
            "pad_shape": sizes.image_size,
            "img_shape": sizes.image_size,
            "ori_shape": (900, 1600),
            "box_type_3d": LiDARInstance3DBoxes,
        }
    )
    return sample


def _rig(sizes: LossSizes) -> dict[str, np.ndarray]:
    """Camera matrices [N, 4, 4] of a nuScenes-like rig at the config's image size."""
    height, width = sizes.image_size
    scale = width / 1600
    intrinsics, extrinsics = [], []
    for yaw, focal in (_RIG[i % len(_RIG)] for i in range(sizes.num_cameras)):
        matrix = np.eye(4)
        matrix[0, 0] = matrix[1, 1] = focal * scale
        matrix[:2, 2] = width / 2, height - 409 * scale
        intrinsics.append(matrix)
        c, s = math.cos(math.radians(yaw)), math.sin(math.radians(yaw))
        camera = np.eye(4)  # lidar (x right, y front, z up) to camera (x right, y down, z front)
        camera[:3, :3] = np.array([[c, s, 0.0], [0.0, 0.0, -1.0], [-s, c, 0.0]])
        camera[:3, 3] = 0.0, -0.33, -0.6
        extrinsics.append(camera)
    intrinsics, extrinsics = np.stack(intrinsics), np.stack(extrinsics)
    return {"intrinsics": intrinsics, "extrinsics": extrinsics, "lidar2img": intrinsics @ extrinsics}


def _mark(owner: Any, method: str, *names: str) -> None:
    """Puts stages around a method of one object."""
    original: Callable[..., Any] = getattr(owner, method)

    @functools.wraps(original)
    def marked(*args: Any, **kwargs: Any) -> Any:
        with ExitStack() as stack:
            for name in names:
                stack.enter_context(stage(name))
            return original(*args, **kwargs)

    setattr(owner, method, marked)


def _without_pretrained(config: Any) -> Any:
    """Drops what would download weights; speed does not depend on them."""
    if isinstance(config, Mapping):
        kept = {k: _without_pretrained(v) for k, v in config.items()}
        if isinstance(kept.get("init_cfg"), Mapping) and kept["init_cfg"].get("type") == "Pretrained":
            kept["init_cfg"] = None
        return kept
    return [_without_pretrained(v) for v in config] if isinstance(config, list | tuple) else config


def _seed_all(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
