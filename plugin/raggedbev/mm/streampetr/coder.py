"""Box coder: class logits and box codes of the last decoder layer in, boxes with scores and labels out."""

from collections.abc import Sequence

import torch
from mmdet3d.registry import TASK_UTILS
from torch import Tensor


@TASK_UTILS.register_module()
class StreamPETRBoxCoder:
    """Decode without non-maximum suppression: the best ``max_num`` (query, class) pairs of each sample.

    A box code is (x, y, z of the gravity centre in metres, logarithms of the three dimensions, sine and cosine of the
    yaw, vx, vy).

    Args:
        post_center_range: Boxes are kept if ``min <= centre <= max``: (x, y, z min, x, y, z max) in metres.
        pc_range: Accepted because published configs have it; codes are in metres, so decoding does not need it.
        max_num: Pairs per sample before the range filter.
        num_classes: Number of classes.
    """

    def __init__(
        self,
        post_center_range: Sequence[float],
        pc_range: Sequence[float] | None = None,
        max_num: int = 300,
        num_classes: int = 10,
    ) -> None:
        for name, value in (("post_center_range", post_center_range), ("pc_range", pc_range)):
            if value is not None and len(value) != 6:
                raise ValueError(f"{name} must have 6 numbers, got {value}")
        self.post_center_range = tuple(post_center_range)
        self.max_num = max_num
        self.num_classes = num_classes

    def decode(self, cls_logits: Tensor, box_codes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Decode a batch; the shapes do not depend on values.

        Args:
            cls_logits: ``[B, Q, num_classes]``.
            box_codes: ``[B, Q, 10]``.

        Returns:
            boxes ``[B, K, 9]`` (gravity centre, dimensions, yaw, velocity), scores ``[B, K]`` descending, labels
            ``[B, K]``, and ``[B, K]`` bool, True where the centre lies in ``post_center_range``; K = min(max_num, all).
        """
        if cls_logits.shape[-1] != self.num_classes:
            raise ValueError(f"cls_logits must have num_classes={self.num_classes} columns, got {cls_logits.shape[-1]}")
        flat = cls_logits.sigmoid().flatten(1)
        scores, index = flat.topk(min(self.max_num, flat.shape[1]), dim=1)
        query = torch.div(index, self.num_classes, rounding_mode="floor")
        codes = box_codes.gather(1, query.unsqueeze(-1).expand(-1, -1, box_codes.shape[-1]))
        yaw = torch.atan2(codes[..., 6:7], codes[..., 7:8])
        boxes = torch.cat([codes[..., :3], codes[..., 3:6].exp(), yaw, codes[..., 8:]], dim=-1)
        low, high = boxes.new_tensor(self.post_center_range).split(3)
        inside = ((boxes[..., :3] >= low) & (boxes[..., :3] <= high)).all(-1)
        return boxes, scores, index % self.num_classes, inside
