"""3D head: image features, camera geometry and past frames in; class logits and boxes of every decoder layer out.

Losses are added by subclasses. Letters: B samples, N cameras, S = N*H*W tokens, Q learned and P propagated queries,
R further past queries, D depth bins, L decoder layers, C channels.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from mmdet3d.registry import MODELS, TASK_UTILS
from mmengine.model import BaseModule
from torch import Tensor, nn

from raggedbev.losses import (
    DenoisingConfig,
    DenoisingOutput,
    DenoisingQueries,
    GroundTruth3D,
    PackedGroundTruth3D,
    attention_mask,
    prepare_denoising,
)
from raggedbev.mm.streampetr.embedding import (
    NERF_FREQUENCIES,
    ModulatedLayerNorm,
    SqueezeExcite,
    inverse_sigmoid,
    nerf_encoding,
    sine_encoding,
    sine_encoding_3d,
)
from raggedbev.mm.streampetr.focal_head import prior_bias
from raggedbev.mm.streampetr.memory import MemoryQueue, MemoryState, rigid_transform

CODE_SIZE = 10
STORED_BRANCHES = 6
CONE_BIN = -30
MOTION_DIMS = 15 * 2 * len(NERF_FREQUENCIES)
FRAME_MATRICES = ("intrinsics", "lidar2img", "ego_pose", "ego_pose_inv", "prev_exists")


@dataclass(frozen=True)
class QueryInputs:
    """What the decoder starts from.

    Attributes:
        query: ``[B, T, C]`` with T = denoising + Q + P.
        query_pos: ``[B, T, C]``.
        reference_points: ``[B, T, 3]`` in units of ``pc_range``.
        temporal: ``[B, R, C]`` past queries that are keys only.
        temporal_pos: ``[B, R, C]``.
    """

    query: Tensor
    query_pos: Tensor
    reference_points: Tensor
    temporal: Tensor
    temporal_pos: Tensor


def _mlp(*widths: int) -> nn.Sequential:
    """Two linear layers with ReLU between them."""
    first, hidden, last = widths
    return nn.Sequential(nn.Linear(first, hidden), nn.ReLU(), nn.Linear(hidden, last))


def _branch(dims: int, num_outputs: int, norm: bool) -> nn.Sequential:
    """Prediction branch: two hidden layers, with or without layer norm, and the output layer."""
    hidden = [nn.Linear(dims, dims), *([nn.LayerNorm(dims)] if norm else []), nn.ReLU()]
    hidden += [nn.Linear(dims, dims), *([nn.LayerNorm(dims)] if norm else []), nn.ReLU()]
    return nn.Sequential(*hidden, nn.Linear(dims, num_outputs))


def _frozen(values: Sequence[float] | Tensor) -> nn.Parameter:
    return nn.Parameter(torch.as_tensor(values, dtype=torch.float32), requires_grad=False)


class StreamPETRHeadBase(BaseModule):
    """The head of StreamPETR (arXiv 2303.11926) without its loss, which subclasses add.

    The memory of past frames is advanced by every :meth:`forward`; :meth:`reset_memory` drops it.

    Args:
        num_classes: Number of classes.
        in_channels: Channels of the feature map.
        embed_dims: Width C of queries and tokens.
        num_query: Learned queries Q.
        memory_len: Past queries that a frame sees.
        topk_proposals: Queries that each frame adds to the memory.
        num_propagated: Past queries P that are decoded again; the others are keys of the self-attention.
        with_ego_pos: Whether queries are conditioned on the ego motion since their frame.
        match_with_velo: Whether the match cost includes velocities.
        scalar: Denoising groups in training; 0 for no denoising queries.
        noise_scale: Denoising noise in units of half the box size.
        dn_weight: Weight of the denoising losses.
        split: Noise length beyond which a denoising query is background.
        LID: Depth bins whose width grows linearly; otherwise all are equally wide.
        depth_num: Depth bins D, at least 30.
        depth_start: Depth of the first bin in metres.
        position_range: Range that the 3D position embedding is normalised to (x, y, z min, x, y, z max), metres.
        pc_range: Range that reference points are normalised to, metres.
        code_weights: Weights of the 10 box code entries in the loss.
        match_costs: Weights of the 10 box code entries in the match cost.
        sync_cls_avg_factor: Whether the classification loss is normalised by the mean over processes.
        transformer: Config of the decoder; its ``embed_dims`` is set from here.
        bbox_coder: Config of the box coder.
        loss_cls, loss_bbox, train_cfg: Handed to ``_build_loss``.
        init_cfg: As for every mmengine module.
    """

    def __init__(
        self,
        transformer: dict,
        bbox_coder: dict,
        num_classes: int = 10,
        in_channels: int = 256,
        embed_dims: int = 256,
        num_query: int = 644,
        memory_len: int = 1024,
        topk_proposals: int = 256,
        num_propagated: int = 256,
        with_ego_pos: bool = True,
        match_with_velo: bool = False,
        scalar: int = 10,
        noise_scale: float = 1.0,
        dn_weight: float = 1.0,
        split: float = 0.75,
        LID: bool = True,
        depth_num: int = 64,
        depth_start: float = 1.0,
        position_range: Sequence[float] = (-61.2, -61.2, -10.0, 61.2, 61.2, 10.0),
        pc_range: Sequence[float] = (-51.2, -51.2, -5.0, 51.2, 51.2, 3.0),
        code_weights: Sequence[float] = (2.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0),
        match_costs: Sequence[float] = (2.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0),
        sync_cls_avg_factor: bool = False,
        loss_cls: dict | None = None,
        loss_bbox: dict | None = None,
        train_cfg: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        _check_lengths(6, position_range=position_range, pc_range=pc_range)
        _check_lengths(CODE_SIZE, code_weights=code_weights, match_costs=match_costs)
        if depth_num < -CONE_BIN:
            raise ValueError(f"depth_num must be at least {-CONE_BIN}, which the camera cone reads, got {depth_num}")
        if topk_proposals > num_query + num_propagated:
            raise ValueError(
                f"topk_proposals must not exceed num_query + num_propagated = {num_query + num_propagated}, "
                f"got {topk_proposals}"
            )
        self.num_classes = num_classes
        self.embed_dims = embed_dims
        self.num_query = num_query
        self.memory_len = memory_len
        self.num_propagated = num_propagated
        self.with_ego_pos = with_ego_pos
        self.match_with_velo = match_with_velo
        self.dn_weight = dn_weight
        self.sync_cls_avg_factor = sync_cls_avg_factor
        self.memory = MemoryQueue(memory_len, topk_proposals, num_propagated, embed_dims)
        self.bbox_coder = TASK_UTILS.build(bbox_coder)

        self.code_weights = _frozen(code_weights)
        self.match_costs = _frozen(match_costs)
        self.pc_range = _frozen(pc_range)
        self.position_range = _frozen(position_range)
        self.coords_d = _frozen(_depth_bins(depth_num, depth_start, position_range[3], LID))
        self.denoising: DenoisingConfig | None = None
        if scalar > 0:
            self.denoising = DenoisingConfig(tuple(self.pc_range.tolist()), num_classes, scalar, noise_scale, split)
        self._build_layers(in_channels, depth_num)
        self.transformer = MODELS.build(dict(transformer, embed_dims=embed_dims))
        self._build_loss(loss_cls=loss_cls, loss_bbox=loss_bbox, train_cfg=train_cfg)

    def _build_layers(self, in_channels: int, depth_num: int) -> None:
        """Everything with weights but the decoder, in torch's default initialisation unless set here."""
        dims = self.embed_dims
        classify = _branch(dims, self.num_classes, norm=True)
        nn.init.constant_(classify[-1].bias, prior_bias())
        regress = _branch(dims, CODE_SIZE, norm=False)
        # One module for all decoder layers; checkpoints hold it six times.
        self.cls_branches = nn.ModuleList([classify] * STORED_BRANCHES)
        self.reg_branches = nn.ModuleList([regress] * STORED_BRANCHES)
        self.position_encoder = _mlp(3 * depth_num, 4 * dims, dims)
        self.memory_embed = _mlp(in_channels, dims, dims)
        self.featurized_pe = SqueezeExcite(dims)
        self.reference_points = nn.Embedding(self.num_query, 3)
        self.pseudo_reference_points = nn.Embedding(self.num_propagated, 3)
        for table in (self.reference_points, self.pseudo_reference_points):
            nn.init.uniform_(table.weight)
        self.pseudo_reference_points.weight.requires_grad_(False)
        self.query_embedding = _mlp(3 * (dims // 2), dims, dims)
        self.spatial_alignment = ModulatedLayerNorm(8, dims)
        self.time_embedding = nn.Sequential(nn.Linear(dims, dims), nn.LayerNorm(dims))
        if self.with_ego_pos:
            self.ego_pose_pe = ModulatedLayerNorm(MOTION_DIMS, dims)
            self.ego_pose_memory = ModulatedLayerNorm(MOTION_DIMS, dims)

    @abstractmethod
    def _build_loss(self, loss_cls: dict | None, loss_bbox: dict | None, train_cfg: dict | None) -> None:
        """Take the loss and assigner configs."""

    @abstractmethod
    def loss(self, outs: dict[str, Any], gt: GroundTruth3D) -> dict[str, Tensor]:
        """Losses of what :meth:`forward` gave for the objects ``gt``."""

    def reset_memory(self) -> None:
        """Forget all past frames."""
        self.memory.reset()

    def forward(
        self,
        feats: Tensor,
        location: Tensor,
        frame: Mapping[str, Any],
        gt: GroundTruth3D | PackedGroundTruth3D | None = None,
        dn_uniform: Tensor | None = None,
    ) -> dict[str, Any]:
        """Decode one frame and advance the memory.

        Args:
            feats: ``[B, N, in_channels, H, W]``.
            location: Token centres ``[H, W, 2]`` as (u, v) over the padded image size.
            frame: ``intrinsics``, ``lidar2img`` ``[B, N, 4, 4]``; ``ego_pose`` (lidar to global), ``ego_pose_inv``
                ``[B, 4, 4]``; ``timestamp [B]`` float64 seconds; ``prev_exists [B]`` 0 or 1; ``pad_shape`` (h, w) in
                pixels.
            gt: Objects, for denoising queries; used in training mode only.
            dn_uniform: ``[groups, B, G, 3]`` numbers in [0, 1) to use as denoising noise instead of drawing them.

        Returns:
            ``all_cls_scores [L, B, Q + P, num_classes]`` logits; ``all_bbox_preds [L, B, Q + P, 10]`` (gravity centre
            in metres, logarithms of dimensions, sine and cosine of yaw, velocity); ``dn``: the same for denoising
            queries as a :class:`DenoisingOutput`, or None.
        """
        dtype = self.reference_points.weight.dtype
        frame = {**frame, **{name: frame[name].to(dtype) for name in FRAME_MATRICES}}
        past = self.memory.before_frame(frame, self._to_metres(self.pseudo_reference_points.weight))
        dn = None
        if self.training and gt is not None and self.denoising is not None:
            dn = prepare_denoising(gt, self.denoising, uniform=dn_uniform)
        tokens, tokens_pos = self.encode_tokens(feats, location, frame)
        inputs = self.encode_queries(past, None if dn is None else dn.reference_points.to(dtype))
        outputs = self.transformer(
            inputs.query,
            inputs.query_pos,
            inputs.temporal,
            inputs.temporal_pos,
            tokens,
            tokens_pos,
            self._blocked(dn, device=tokens.device),
        )
        logits, codes = self.predict_codes(outputs, inputs.reference_points)
        pad = 0 if dn is None else dn.pad
        self.memory.after_frame(
            past,
            embedding=outputs[-1, :, pad:],
            centers=codes[-1, :, pad:, :3],
            velo=codes[-1, :, pad:, -2:],
            scores=logits[-1, :, pad:].sigmoid().amax(-1),
            frame=frame,
        )
        return {
            "all_cls_scores": logits[:, :, pad:],
            "all_bbox_preds": codes[:, :, pad:],
            "dn": None if dn is None else DenoisingOutput(logits[:, :, :pad], codes[:, :, :pad], dn),
        }

    def predict(self, outs: dict[str, Any]) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Final boxes of each sample.

        Args:
            outs: What :meth:`forward` gave.

        Returns:
            Per sample boxes ``[n, 9]`` (bottom centre, dimensions, yaw, velocity), scores ``[n]`` descending, labels
            ``[n]``.
        """
        boxes, scores, labels, inside = self.bbox_coder.decode(outs["all_cls_scores"][-1], outs["all_bbox_preds"][-1])
        boxes = torch.cat([boxes[..., :2], boxes[..., 2:3] - boxes[..., 5:6] / 2, boxes[..., 3:]], dim=-1)
        return [(boxes[b, keep], scores[b, keep], labels[b, keep]) for b, keep in enumerate(inside)]

    def encode_tokens(self, feats: Tensor, location: Tensor, frame: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Image tokens and their 3D position embedding, each ``[B, S, C]`` in camera, row, column order."""
        tokens = self.memory_embed(feats.permute(0, 1, 3, 4, 2).flatten(1, 3))
        points = self.frustum_points(location, frame)
        position = self.position_encoder(inverse_sigmoid(points))
        tokens = self.spatial_alignment(tokens, self.camera_cone(points, frame["intrinsics"]))
        return tokens, self.featurized_pe(position, tokens)

    def frustum_points(self, location: Tensor, frame: Mapping[str, Any]) -> Tensor:
        """Points along the ray of each token, bin by bin, in units of ``position_range``: ``[B, S, 3 D]``."""
        lidar2img = frame["lidar2img"]
        pad_h, pad_w = frame["pad_shape"]
        depth = self.coords_d
        u, v = location.to(depth.dtype).unbind(-1)
        scale = depth.clamp(min=1e-5)
        pixels = torch.stack(
            [(u * pad_w).unsqueeze(-1) * scale, (v * pad_h).unsqueeze(-1) * scale, depth.expand(*u.shape, -1)], dim=-1
        )  # [H, W, D, 3]
        img2lidar = torch.linalg.inv_ex(lidar2img).inverse
        points = rigid_transform(img2lidar[:, :, None, None, None], pixels)  # [B, N, H, W, D, 3]
        low, high = self.position_range.split(3)
        return ((points - low) / (high - low)).flatten(-2).flatten(1, 3)

    def camera_cone(self, points: Tensor, intrinsics: Tensor) -> Tensor:
        """Focal lengths (1000 pixels) and two points of the ray of each token: ``[B, S, 8]``.

        As published, the focal lengths of token k are those of camera k mod N although tokens are ordered by camera;
        trained weights expect it.
        """
        num_cameras = intrinsics.shape[1]
        focal = torch.stack([intrinsics[..., 0, 0], intrinsics[..., 1, 1]], dim=-1).abs() / 1e3
        focal = focal.repeat(1, points.shape[1] // num_cameras, 1)
        return torch.cat([focal, points[..., -3:], points[..., 3 * CONE_BIN : 3 * CONE_BIN + 3]], dim=-1)

    def encode_queries(self, past: MemoryState, dn_points: Tensor | None) -> QueryInputs:
        """Learned queries with denoising queries in front and propagated queries behind, and the rest of the memory.

        Args:
            past: Memory in the ego frame of this frame.
            dn_points: Reference points of denoising queries ``[B, pad, 3]`` in units of ``pc_range``, or None.
        """
        batch_size = len(past.embedding)
        points = self.reference_points.weight.expand(batch_size, -1, -1)
        if dn_points is not None:
            points = torch.cat([dn_points, points], dim=1)
        here = self._present_motion(points)
        query = points.new_zeros(*points.shape[:2], self.embed_dims)
        query, query_pos = self._add_motion(query, self._point_embedding(points), here)
        query_pos = query_pos + self._time_embedding(points.new_zeros(1, 1, 1, dtype=torch.float64), points.dtype)

        low, high = self.pc_range.split(3)
        past_points = (past.reference_point - low) / (high - low)
        motion = torch.cat([past.velo, past.timestamp.to(points.dtype), past.egopose[..., :3, :].flatten(-2)], dim=-1)
        temporal, temporal_pos = self._add_motion(past.embedding, self._point_embedding(past_points), motion)
        temporal_pos = temporal_pos + self._time_embedding(past.timestamp, points.dtype)
        split = self.num_propagated
        return QueryInputs(
            query=torch.cat([query, temporal[:, :split]], dim=1),
            query_pos=torch.cat([query_pos, temporal_pos[:, :split]], dim=1),
            reference_points=torch.cat([points, past_points[:, :split]], dim=1),
            temporal=temporal[:, split:],
            temporal_pos=temporal_pos[:, split:],
        )

    def predict_codes(self, outputs: Tensor, reference_points: Tensor) -> tuple[Tensor, Tensor]:
        """Class logits ``[L, B, T, num_classes]`` and box codes ``[L, B, T, 10]`` of decoder outputs ``[L, B, T, C]``.

        All layers refine the same reference points ``[B, T, 3]``.
        """
        offsets = self.reg_branches[0](outputs)
        centers = (offsets[..., :3] + inverse_sigmoid(reference_points)).sigmoid()
        return self.cls_branches[0](outputs), torch.cat([self._to_metres(centers), offsets[..., 3:]], dim=-1)

    def _to_metres(self, points: Tensor) -> Tensor:
        low, high = self.pc_range.split(3)
        return points * (high - low) + low

    def _point_embedding(self, points: Tensor) -> Tensor:
        return self.query_embedding(sine_encoding_3d(points, self.embed_dims // 2))

    def _time_embedding(self, seconds: Tensor, dtype: torch.dtype) -> Tensor:
        """Embedding of float64 ages ``[..., 1]``; the encoding is float64, as ages have absolute times subtracted."""
        return self.time_embedding(sine_encoding(seconds.squeeze(-1), self.embed_dims).to(dtype))

    def _present_motion(self, like: Tensor) -> Tensor:
        """Motion vector of a query of this frame, ``[1, 1, 15]``: no velocity, no age, identity pose."""
        pose = torch.eye(4, dtype=like.dtype, device=like.device)[:3].flatten()
        return torch.cat([pose.new_zeros(3), pose])[None, None]

    def _add_motion(self, query: Tensor, query_pos: Tensor, motion: Tensor) -> tuple[Tensor, Tensor]:
        """Condition queries on velocity, age and relative pose ``[..., 15]``."""
        if not self.with_ego_pos:
            return query, query_pos
        encoded = nerf_encoding(motion)
        return self.ego_pose_memory(query, encoded), self.ego_pose_pe(query_pos, encoded)

    def _blocked(self, dn: DenoisingQueries | None, device: torch.device) -> Tensor | None:
        """Self-attention mask, True = blocked, or None without denoising queries."""
        if dn is None:
            return None
        return attention_mask(dn.pad, dn.groups, self.num_query, self.num_propagated, self.memory_len, device=device)


def _check_lengths(length: int, **values: Sequence[float]) -> None:
    for name, value in values.items():
        if len(value) != length:
            raise ValueError(f"{name} must have {length} numbers, got {list(value)}")


def _depth_bins(num: int, start: float, stop: float, linear_increasing: bool) -> Tensor:
    """Depths of ``num`` bins between ``start`` and ``stop`` metres, ``[num]`` (linear: CaDDN, arXiv 2103.01100)."""
    index = torch.arange(num, dtype=torch.float32)
    if linear_increasing:
        return start + (stop - start) / (num * (1 + num)) * index * (index + 1)
    return start + (stop - start) / num * index
