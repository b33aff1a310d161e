"""Names of nuScenes, in the orders that models and info files number them.

Classes are those of the nuScenes detection task (nuscenes-devkit, `nuscenes.eval.detection`). Nothing flows in; data
sets, tools and benchmarks take their orders from here.
"""

__all__ = ["CAMERAS", "DETECTION_CLASSES", "INFO_CLASSES"]

DETECTION_CLASSES = (
    "car",
    "truck",
    "construction_vehicle",
    "bus",
    "trailer",
    "barrier",
    "motorcycle",
    "bicycle",
    "pedestrian",
    "traffic_cone",
)
"""Classes in the order of the configs (that of StreamPETR's published configs), which is that of model outputs."""

INFO_CLASSES = (
    "car",
    "truck",
    "trailer",
    "bus",
    "construction_vehicle",
    "bicycle",
    "motorcycle",
    "pedestrian",
    "traffic_cone",
    "barrier",
)
"""Classes in the order of info files (that of mmdet3d's nuScenes converter)."""

CAMERAS = ("CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_FRONT_LEFT", "CAM_BACK", "CAM_BACK_LEFT", "CAM_BACK_RIGHT")
"""Cameras in the order of mmdet3d's info files, which is that of model inputs."""
