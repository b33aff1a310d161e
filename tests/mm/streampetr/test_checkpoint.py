"""Published weights keep their names; the class channels of the 2D head are brought into the config's order."""

import pytest
import torch
from mmdet3d.registry import MODELS

import raggedbev.mm.streampetr  # noqa: F401
from raggedbev.mm.streampetr.checkpoint import convert_published_state_dict
from raggedbev.nuscenes import DETECTION_CLASSES, INFO_CLASSES


def _published():
    head = MODELS.build(dict(type="PerSampleFocalHead", in_channels=32, embed_dims=32))
    weights = {f"img_roi_head.{key}": value for key, value in head.state_dict().items()}
    weights["img_roi_head.cls.bias"] = torch.arange(10.0)
    return head, weights


def test_channels_follow_their_class():
    head, published = _published()
    converted = convert_published_state_dict(published)
    assert list(converted) == list(published)
    for channel, name in enumerate(DETECTION_CLASSES):
        source = INFO_CLASSES.index(name)
        assert converted["img_roi_head.cls.bias"][channel] == source
        torch.testing.assert_close(
            converted["img_roi_head.cls.weight"][channel], published["img_roi_head.cls.weight"][source], rtol=0, atol=0
        )
    head.load_state_dict({key.removeprefix("img_roi_head."): value for key, value in converted.items()})
    assert published["img_roi_head.cls.bias"].tolist() == list(range(10))


def test_other_checkpoints_are_refused():
    with pytest.raises(ValueError, match=r"no weight img_roi_head\.cls\.weight in the checkpoint"):
        convert_published_state_dict({"a": torch.zeros(1)})
    _, weights = _published()
    weights["img_roi_head.cls.weight"] = torch.zeros(3, 32, 1, 1)
    with pytest.raises(ValueError, match=r"must have 10 classes, got shape \(3, 32, 1, 1\)"):
        convert_published_state_dict(weights)
