"""Published StreamPETR weights for this port.

In: the state dict of a checkpoint trained with the published code. Out: the state dict of this package's model.

Every name is the same. One thing differs: the published data loader left the labels of 2D boxes in the order of the
info files, while the 3D head uses the order of the config, so the class channels of the published 2D head are permuted
against those of the 3D head. Here both heads use the config's order.
"""

from __future__ import annotations

import torch
from torch import Tensor

from raggedbev.nuscenes import DETECTION_CLASSES, INFO_CLASSES

__all__ = ["convert_published_state_dict"]

_PERMUTED = ("img_roi_head.cls.weight", "img_roi_head.cls.bias")


def convert_published_state_dict(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Permute the class channels of the 2D head from info order to config order.

    Args:
        state_dict: Weights of a published checkpoint.

    Returns:
        A new dict with the same keys; all other tensors are shared with the input.

    Raises:
        ValueError: The 2D classifier is missing or has another number of classes.
    """
    order = torch.tensor([INFO_CLASSES.index(name) for name in DETECTION_CLASSES])
    converted = dict(state_dict)
    for key in _PERMUTED:
        if key not in state_dict:
            raise ValueError(f"no weight {key} in the checkpoint; is it a StreamPETR checkpoint with its 2D head?")
        if state_dict[key].shape[0] != len(order):
            raise ValueError(f"{key} must have {len(order)} classes, got shape {tuple(state_dict[key].shape)}")
        converted[key] = state_dict[key][order]
    return converted
