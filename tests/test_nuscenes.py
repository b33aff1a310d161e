"""Orders of nuScenes' names: one list of classes, for the configs, the info files and the devkit."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from raggedbev.nuscenes import CAMERAS, DETECTION_CLASSES, INFO_CLASSES

CONFIG = Path(__file__).resolve().parent.parent / "configs" / "_base_" / "nuscenes_stream.py"


def test_config_has_the_classes_in_this_order():
    config = runpy.run_path(str(CONFIG))
    assert tuple(config["class_names"]) == DETECTION_CLASSES
    assert set(CAMERAS) < set(config["data_prefix"])


def test_both_orders_hold_the_same_classes():
    assert sorted(INFO_CLASSES) == sorted(DETECTION_CLASSES) and INFO_CLASSES != DETECTION_CLASSES
    assert len(set(INFO_CLASSES)) == 10 and len(set(CAMERAS)) == 6


def test_classes_are_those_of_the_devkit():
    constants = pytest.importorskip("nuscenes.eval.detection.constants")
    assert sorted(constants.DETECTION_NAMES) == sorted(DETECTION_CLASSES)
