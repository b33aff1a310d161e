"""nuScenes detection metrics of streamed predictions.

In: data samples with `token` and `pred_instances_3d` (lidar boxes, scores, labels), from any number of ranks, in any
order, some of them twice. Out: mAP, NDS and the mean errors by nuscenes-devkit, and a table of the classes in the log.
"""

import contextlib
import io
import os.path as osp
import tempfile
from collections.abc import Sequence

import mmengine
import numpy as np
from mmdet3d.evaluation import NuScenesMetric
from mmdet3d.registry import METRICS
from mmdet3d.structures import LiDARInstance3DBoxes
from mmengine.dist import broadcast_object_list, gather_object, is_main_process
from mmengine.fileio import load
from mmengine.logging import MMLogger
from nuscenes import NuScenes
from nuscenes.eval.detection.evaluate import NuScenesEval
from nuscenes.utils.splits import create_splits_scenes
from pyquaternion import Quaternion

from raggedbev.mm.streampetr.infos import no_garbage_collection

DEFAULT_SETS = {"v1.0-mini": "mini_val", "v1.0-trainval": "val"}
VEHICLES = ("car", "construction_vehicle", "bus", "truck", "trailer")
CYCLES = ("bicycle", "motorcycle")
MOVING_SPEED = 0.2  # metres per second above which an object counts as moving
FAR_AWAY = 1e6  # metres; beyond every class's evaluation range
PREDICTION = "pred_instances_3d"


@METRICS.register_module()
class StreamNuScenesMetric(NuScenesMetric):
    """nuScenes detection metrics, matched by sample token.

    Unlike mmdet3d's, the dataset may be ordered in any way, ranks may hold contiguous shards and share samples, any
    split can be evaluated, and boxes are converted a frame at a time. Attributes follow mmdet3d's rules.

    Args:
        data_root: root of the nuScenes data.
        ann_file: info file with the evaluated samples (their poses are read).
        eval_set: split of the devkit, such as 'mini_train', 'mini_val', 'train' or 'val'; by default 'mini_val' for
            v1.0-mini and 'val' for v1.0-trainval.
        format_only: write the result file and compute nothing.
        jsonfile_prefix: folder of `pred_instances_3d/results_nusc.json`; a temporary one by default.
        modality: sensors used, for the result file.
        prefix: of the metric names, 'NuScenes metric' by default.
        eval_version: configuration of the devkit's evaluation.
        backend_args: arguments of mmengine's file back end, for the info file.
    """

    def __init__(
        self,
        data_root: str,
        ann_file: str,
        eval_set: str | None = None,
        format_only: bool = False,
        jsonfile_prefix: str | None = None,
        modality: dict | None = None,
        prefix: str | None = None,
        eval_version: str = "detection_cvpr_2019",
        backend_args: dict | None = None,
    ) -> None:
        if format_only and jsonfile_prefix is None:
            raise ValueError("format_only needs jsonfile_prefix, the folder to write the result file to")
        if eval_set is not None and eval_set not in create_splits_scenes():
            raise ValueError(f"eval_set must be one of {sorted(create_splits_scenes())}, got {eval_set!r}")
        super().__init__(
            data_root=data_root,
            ann_file=ann_file,
            format_only=format_only,
            jsonfile_prefix=jsonfile_prefix,
            modality=modality or {"use_camera": True, "use_lidar": False},
            prefix=prefix,
            eval_version=eval_version,
            backend_args=backend_args,
        )
        self.eval_set = eval_set
        self._poses: dict[str, tuple[np.ndarray, np.ndarray]] | None = None

    # ---- collecting ----

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Keep the predictions of a batch as arrays, by token."""
        for sample in data_samples:
            prediction = sample[PREDICTION]
            boxes = prediction["bboxes_3d"]
            if not isinstance(boxes, LiDARInstance3DBoxes):
                raise TypeError(f"predicted boxes must be LiDARInstance3DBoxes, got {type(boxes).__name__}")
            self.results.append(
                {
                    "token": sample["token"],
                    "centers": boxes.gravity_center.detach().cpu().numpy().reshape(-1, 3),
                    "boxes": boxes.tensor.detach().cpu().numpy(),
                    "scores": prediction["scores_3d"].detach().cpu().numpy(),
                    "labels": prediction["labels_3d"].detach().cpu().numpy().astype(np.int64),
                }
            )

    def evaluate(self, size: int) -> dict:
        """Evaluate the predictions of all ranks; samples seen twice count once.

        Args:
            size: length of the dataset (not needed: tokens tell which predictions belong together).

        Returns:
            The metrics, on every rank.
        """
        gathered = gather_object(self.results)
        metrics = [None]
        if is_main_process():
            results: dict[str, dict] = {}
            for result in (result for part in gathered for result in part):
                results.setdefault(result["token"], result)
            computed = self.compute_metrics(list(results.values()))
            metrics = [{f"{self.prefix}/{name}": value for name, value in computed.items()}]
        broadcast_object_list(metrics)
        self.results.clear()
        return metrics[0]

    # ---- computing ----

    def compute_metrics(self, results: list[dict]) -> dict[str, float]:
        """Write the result file and evaluate it.

        Args:
            results: one dict per sample, as `process` makes them.

        Returns:
            `pred_instances_3d_NuScenes/` followed by mAP, NDS, mATE, mASE, mAOE, mAVE, mAAE and `<class>_AP`.

        Raises:
            ValueError: a sample of the split lacks predictions, or the split does not belong to the data.
        """
        annotations, broken = {}, 0
        for result in results:
            annotations[result["token"]], dropped = self._format_boxes(result)
            broken += dropped
        logger = MMLogger.get_current_instance()
        if broken:
            logger.warning(f"{broken} predicted boxes are not finite and were left out of the evaluation")

        with tempfile.TemporaryDirectory() as temporary:
            folder = osp.join(self.jsonfile_prefix or temporary, PREDICTION)
            mmengine.mkdir_or_exist(folder)
            if self.jsonfile_prefix is not None:
                path = osp.join(folder, "results_nusc.json")
                mmengine.dump({"meta": self.modality, "results": annotations}, path)
                logger.info(f"Results of {len(annotations)} samples are in {path}")
            if self.format_only:
                return {}
            return self._evaluate(annotations, folder, logger)

    def _evaluate(self, annotations: dict[str, list[dict]], folder: str, logger: MMLogger) -> dict[str, float]:
        version = self.dataset_meta["version"]
        eval_set = self.eval_set or DEFAULT_SETS.get(version)
        if eval_set is None:
            raise ValueError(f"{version} has no public annotations: use format_only=True with jsonfile_prefix")
        if eval_set.startswith("mini") != version.endswith("mini"):
            raise ValueError(f"eval_set {eval_set!r} is not a split of {version}")
        with contextlib.redirect_stderr(io.StringIO()):  # the devkit's progress bars
            nusc = NuScenes(version=version, dataroot=self.data_root, verbose=False)
            annotations = self._match_split(nusc, annotations, eval_set)
            path = osp.join(folder, "evaluated.json")
            mmengine.dump({"meta": self.modality, "results": annotations}, path)
            evaluation = NuScenesEval(
                nusc,
                config=self.eval_detection_configs,
                result_path=path,
                eval_set=eval_set,
                output_dir=folder,
                verbose=False,
            )
            summary = evaluation.evaluate()[0].serialize()
        mmengine.dump(summary, osp.join(folder, "metrics_summary.json"), indent=2)
        logger.info(f"nuScenes detection metrics on {eval_set}, {len(annotations)} samples\n{summary_table(summary)}")

        metrics = {f"{name}_AP": summary["mean_dist_aps"][name] for name in self.dataset_meta["classes"]}
        metrics.update({self.ErrNameMapping[name]: value for name, value in summary["tp_errors"].items()})
        metrics.update(mAP=summary["mean_ap"], NDS=summary["nd_score"])
        return {f"{PREDICTION}_NuScenes/{name}": round(float(value), 4) for name, value in metrics.items()}

    def _match_split(self, nusc: NuScenes, annotations: dict[str, list[dict]], eval_set: str) -> dict[str, list[dict]]:
        """Predictions of the split's samples, and of all of them."""
        names = create_splits_scenes()[eval_set]
        scenes = {scene["token"] for scene in nusc.scene if scene["name"] in names}
        tokens = [sample["token"] for sample in nusc.sample if sample["scene_token"] in scenes]
        missing = [token for token in tokens if token not in annotations]
        if missing or not tokens:
            raise ValueError(
                f"{len(missing)} of the {len(tokens)} samples of eval_set {eval_set!r} in {self.data_root} have no "
                f"predictions: the test dataset must hold the whole split (its ann_file, no `indices`)"
            )
        matched = {token: annotations[token] for token in tokens}
        if not any(matched.values()):
            matched[tokens[0]] = [self._unseen_box(tokens[0])]
        return matched

    @staticmethod
    def _unseen_box(token: str) -> dict:
        """A box out of all ranges: the devkit cannot read a file without any box."""
        return {
            "sample_token": token,
            "translation": [FAR_AWAY, FAR_AWAY, 0.0],
            "size": [1.0, 1.0, 1.0],
            "rotation": [1.0, 0.0, 0.0, 0.0],
            "velocity": [0.0, 0.0],
            "detection_name": "car",
            "detection_score": 0.0,
            "attribute_name": "",
        }

    # ---- boxes ----

    def _pose(self, token: str) -> tuple[np.ndarray, np.ndarray]:
        """lidar2ego and ego2global [4, 4] of a sample; the info file is read once."""
        if self._poses is None:
            with no_garbage_collection():
                infos = load(self.ann_file, backend_args=self.backend_args)["data_list"]
            self._poses = {
                info["token"]: (
                    np.array(info["lidar_points"]["lidar2ego"], dtype=np.float64),
                    np.array(info["ego2global"], dtype=np.float64),
                )
                for info in infos
            }
        if token not in self._poses:
            raise ValueError(f"sample {token} is not in {self.ann_file}: metric and dataset need the same info file")
        return self._poses[token]

    def _format_boxes(self, result: dict) -> tuple[list[dict], int]:
        """Boxes of a sample in the global frame and the devkit's format, and how many were not finite.

        Boxes beyond the evaluation range of their class are left out, and so are all but the best 500.
        """
        lidar2ego, ego2global = self._pose(result["token"])
        classes = self.dataset_meta["classes"]
        boxes, labels = result["boxes"].astype(np.float64), result["labels"]
        scores = result["scores"].astype(np.float64)
        velocities = np.zeros((len(boxes), 3))
        velocities[:, :2] = boxes[:, 7:9] if boxes.shape[1] >= 9 else 0.0

        centers = result["centers"].astype(np.float64) @ lidar2ego[:3, :3].T + lidar2ego[:3, 3]
        ranges = np.array([self.eval_detection_configs.class_range[name] for name in classes], dtype=np.float64)
        finite = np.isfinite(boxes).all(axis=1) & np.isfinite(scores)
        keep = np.flatnonzero(finite & (np.hypot(centers[:, 0], centers[:, 1]) <= ranges[labels]))
        keep = keep[np.argsort(-scores[keep], kind="stable")[: self.eval_detection_configs.max_boxes_per_sample]]

        centers = centers[keep] @ ego2global[:3, :3].T + ego2global[:3, 3]
        velocities = velocities[keep] @ (ego2global[:3, :3] @ lidar2ego[:3, :3]).T
        rotations = _turned_quaternions(lidar2ego, ego2global, boxes[keep, 6])
        sizes = boxes[keep][:, [4, 3, 5]]
        speeds = np.hypot(velocities[:, 0], velocities[:, 1])
        names = [classes[label] for label in labels[keep]]
        columns = zip(
            centers.tolist(),
            sizes.tolist(),
            rotations.tolist(),
            velocities[:, :2].tolist(),
            names,
            scores[keep].tolist(),
            speeds.tolist(),
            strict=True,
        )
        formatted = [
            {
                "sample_token": result["token"],
                "translation": center,
                "size": size,
                "rotation": rotation,
                "velocity": velocity,
                "detection_name": name,
                "detection_score": score,
                "attribute_name": self.attribute(name, speed),
            }
            for center, size, rotation, velocity, name, score, speed in columns
        ]
        return formatted, int((~finite).sum())

    def attribute(self, name: str, speed: float) -> str:
        """nuScenes attribute of a class at a speed in metres per second, by mmdet3d's rules."""
        if speed > MOVING_SPEED:
            if name in VEHICLES:
                return "vehicle.moving"
            if name in CYCLES:
                return "cycle.with_rider"
        elif name == "pedestrian":
            return "pedestrian.standing"
        elif name == "bus":
            return "vehicle.stopped"
        return self.DefaultAttribute[name]


def _turned_quaternions(lidar2ego: np.ndarray, ego2global: np.ndarray, yaw: np.ndarray) -> np.ndarray:
    """Global orientations [n, 4] (w, x, y, z) of boxes with a yaw [n] in the lidar frame."""
    tolerance = {"rtol": 1e-5, "atol": 1e-6}
    w, x, y, z = (Quaternion(matrix=ego2global, **tolerance) * Quaternion(matrix=lidar2ego, **tolerance)).elements
    cos, sin = np.cos(yaw / 2), np.sin(yaw / 2)
    return np.stack([w * cos - z * sin, x * cos + y * sin, y * cos - x * sin, z * cos + w * sin], axis=1)


def summary_table(summary: dict) -> str:
    """Average precision and errors per class and on average as a text table.

    Args:
        summary: `DetectionMetrics.serialize()` of the devkit.
    """
    errors = list(NuScenesMetric.ErrNameMapping)
    rows = [("class", "AP", *(NuScenesMetric.ErrNameMapping[name][1:] for name in errors))]
    for name, precision in summary["mean_dist_aps"].items():
        rows.append((name, precision, *(summary["label_tp_errors"][name][error] for error in errors)))
    rows.append(("mean", summary["mean_ap"], *(summary["tp_errors"][error] for error in errors)))

    def cell(value: str | float) -> str:
        text = value if isinstance(value, str) else "-" if np.isnan(value) else f"{value:.3f}"
        return f"{text:>7}"

    lines = [f"{row[0]:<21}" + "".join(cell(value) for value in row[1:]) for row in rows]
    return "\n".join([*lines, f"mAP {summary['mean_ap']:.4f}   NDS {summary['nd_score']:.4f}"])
