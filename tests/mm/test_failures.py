"""What the tools say of a config's mistakes, with mmengine's own errors."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import DATASETS, MODELS, OPTIMIZERS, TRANSFORMS, init_default_scope

import raggedbev.mm.streampetr  # noqa: F401  registers its types
from raggedbev.mm.engine import add_common_arguments, load_config, require_checkpoint
from raggedbev.mm.failures import expected_failure
from raggedbev.mm.hooks import check_checkpoint

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def scope():
    init_default_scope("mmdet3d")


def demo_config(twin=""):
    return Config.fromfile(ROOT / f"configs/streampetr/streampetr_r18-352x128_1xb2-demo_nuscenes-mini{twin}.py")


def sentence_of(build):
    with pytest.raises(Exception) as caught:
        build()
    return expected_failure(caught.value)


@pytest.mark.parametrize(("twin", "prefix"), [("", "PerSample"), ("_batched", "Batched")])
def test_a_key_that_a_head_does_not_take(twin, prefix):
    head = demo_config(twin).model.pts_bbox_head
    sentence = sentence_of(lambda: MODELS.build(dict(head, num_qury=3)))
    assert sentence == f"{prefix}StreamPETRHead takes no key 'num_qury'; did you mean 'num_query'?"
    assert sentence_of(lambda: MODELS.build(dict(head, xyz=3))) == f"{prefix}StreamPETRHead takes no key 'xyz'"


def test_a_key_that_a_part_of_a_head_does_not_take():
    head = demo_config().model.pts_bbox_head
    head.transformer.num_layer = 3
    sentence = sentence_of(lambda: MODELS.build(head))
    assert sentence == "StreamPETRTransformer takes no key 'num_layer'; did you mean 'num_layers'?"


def test_keys_of_a_transform_and_of_a_dataset():
    assert sentence_of(lambda: Compose([dict(type="LoadAnnotations3D", with_bbox3d=True)])) == (
        "LoadAnnotations3D takes no key 'with_bbox3d'; did you mean 'with_bbox_3d'?"
    )
    dataset = dict(type="NuScenesDataset", data_rot="data", ann_file="x.pkl", pipeline=[])
    assert sentence_of(lambda: DATASETS.build(dataset)) == (
        "NuScenesDataset needs the key 'data_root', but got 'data_rot'"
    )
    dataset = dict(type="NuScenesDataset", data_root="data", ann_file="x.pkl", pipelin=[])
    assert sentence_of(lambda: DATASETS.build(dataset)) == (
        "NuScenesDataset takes no key 'pipelin'; did you mean 'pipeline'?"
    )
    assert sentence_of(lambda: OPTIMIZERS.build(dict(type="AdamW", params=[torch.zeros(1)], learning_rate=1.0))) == (
        "AdamW takes no key 'learning_rate'"
    )


def test_keys_that_are_missing():
    assert sentence_of(lambda: MODELS.build(dict(type="mmdet.ResNet"))) == "ResNet needs the key 'depth'"
    assert sentence_of(lambda: MODELS.build(dict(type=torch.nn.Linear))) == (
        "Linear needs the keys 'in_features' and 'out_features'"
    )


def test_a_mistake_of_the_program_keeps_its_traceback():
    class Wrong(torch.nn.Module):
        def __init__(self, size):
            super().__init__()
            torch.nn.ReLU(other=size)

    assert sentence_of(lambda: MODELS.build(dict(type=Wrong, size=3))) is None
    assert sentence_of(lambda: torch.nn.ReLU(other=1)) is None
    assert sentence_of(lambda: {}["loss"]) is None
    assert sentence_of(lambda: 1 / 0) is None


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("BatchedStreamPETRHed", "BatchedStreamPETRHead"),
        ("ResNet", "mmdet.ResNet"),
        ("mmdet.ResNett", "mmdet.ResNet"),
        ("CenterHeadd", "CenterHead"),
    ],
)
def test_a_type_that_is_not_registered(name, meant):
    sentence = sentence_of(lambda: MODELS.build(dict(type=name)))
    assert sentence.startswith(f"{name} is not in the ") and sentence.endswith(f" registry; did you mean {meant!r}?")


def test_a_type_unlike_all_others():
    sentence = sentence_of(lambda: TRANSFORMS.build(dict(type="Frobnicate")))
    assert sentence.endswith("registry; check the name, and that custom_imports has the module that registers it")
    assert sentence.startswith("Frobnicate is not in the ")


def test_a_file_that_is_not_there(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    dataset = dict(type="NuScenesDataset", data_root="data", ann_file="x.pkl", pipeline=[])
    assert sentence_of(lambda: DATASETS.build(dataset)) == f"data/x.pkl does not exist (looked for in {tmp_path})"
    dataset["ann_file"] = f"{tmp_path}/x.pkl"
    assert sentence_of(lambda: DATASETS.build(dataset)) == f"{tmp_path}/x.pkl does not exist"
    dataset = demo_config().train_dataloader.dataset
    assert f"data_root data/mini/ does not exist (looked for in {tmp_path}): set it" in sentence_of(
        lambda: DATASETS.build(dataset)
    )


def test_of_a_data_worker_the_error_alone_is_told():
    text = "Caught ValueError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
    assert expected_failure(ValueError(f"{text}  File x\nValueError: camera image: broken\n")) == "camera image: broken"


def test_a_file_that_is_no_checkpoint(tmp_path):
    path = tmp_path / "other.pth"
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match=rf"^{path} cannot be read as a checkpoint; it is torn or of another kind$"):
        require_checkpoint(str(path))
    torch.save({"model": argparse.Namespace()}, path)
    with pytest.raises(ValueError, match=r"as a checkpoint; it holds argparse.Namespace, not weights alone$"):
        require_checkpoint(str(path))


def test_a_checkpoint_of_another_model_names_the_cure_first():
    ours = {f"head.layers.{i}.some.long.name.of.a.weight": torch.zeros(2) for i in range(9)}
    with pytest.raises(ValueError, match="another model: use the config that it was trained with; of 9") as caught:
        check_checkpoint(ours, {f"module.other.{key}": value for key, value in ours.items()})
    assert len(str(caught.value)) < 250


IMPORTS = "custom_imports = dict(imports=['{}'], allow_failed_imports=False)\n"


@pytest.mark.parametrize(
    ("text", "warned"),
    [
        ("model = dict(head=[dict(type='mmdet.BatchedDETRHead')])\n", True),
        ("model = dict(type='DETR')\n", False),
        (IMPORTS.format("raggedbev.mm") + "model = dict(type='BatchedDETRHead')\n", False),
        (IMPORTS.format("argparse") + "model = dict(type='PerSampleFocalHead')\n", True),
    ],
)
def test_swap_ins_without_custom_imports_are_a_warning(text, warned, tmp_path, capsys):
    path = tmp_path / "config.py"
    path.write_text(text)
    parser = argparse.ArgumentParser()
    add_common_arguments(parser)
    load_config(argparse.Namespace(config=str(path), **vars(parser.parse_args([]))))
    errors = capsys.readouterr().err
    assert ("warning: the config uses " in errors) == warned and errors.count("\n") == warned
    assert not warned or "custom_imports = dict(imports=['raggedbev.mm'])" in errors
