"""Time the loss of mmdet's DETR-like heads as installed, with one `type=` changed and with two.

    python benchmarks/detr_heads.py --json work_dirs/bench/detr-heads-cpu.json
    python benchmarks/detr_heads.py --heads DINOHead --images 2 8 --clock process

A line is one head and one number of images: medians in ms of `loss_by_feat` and the backward pass to the head's
outputs, which are made up; in brackets, how many times slower the stock head is. The arms take turns. Sizes are those
of the published configs on COCO: 80 classes, 6 decoder layers, 100 queries (DETR), 300 (Conditional DETR, DAB-DETR,
Deformable DETR) or 900 (DINO, with 200 denoising queries at least and 22,223 encoder proposals), 1 to 14 objects an
image.

Arms: 'stock' is mmdet's head and assigner; 'assigner' the same head with `BatchedHungarianAssigner`; 'both' the batched
head with it. Losses must agree before anything is timed.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of the packages' own imports
    from mmdet.registry import MODELS
    from mmengine.registry import DefaultScope
    from mmengine.structures import InstanceData

    import raggedbev.mm  # noqa: F401
from raggedbev.profiling.interleave import Progress, calls_to_last
from raggedbev.profiling.report import describe_machine, write_json

CLASSES, LAYERS, MOST_OBJECTS = 80, 6, 14
IMAGE = (800, 1333)  # height and width in pixels
FOCAL = {"type": "FocalLoss", "use_sigmoid": True, "gamma": 2.0, "alpha": 0.25, "loss_weight": 2.0}
SOFTMAX = {"type": "CrossEntropyLoss", "bg_cls_weight": 0.1, "use_sigmoid": False, "class_weight": 1.0}
BOX_COSTS = [
    {"type": "BBoxL1Cost", "weight": 5.0, "box_format": "xywh"},
    {"type": "IoUCost", "iou_mode": "giou", "weight": 2.0},
]
ARMS = {"stock": ("", ""), "assigner": ("", "Batched"), "both": ("Batched", "Batched")}
SHORTEST = 20e-3  # seconds of a measurement, at least
CLOCKS = {"wall": time.perf_counter, "process": time.process_time}


@dataclass(frozen=True)
class Kind:
    """What tells one head from another.

    Attributes:
        queries: of a decoder layer, without denoising ones.
        loss_cls: the class loss.
        cls_cost: the class cost of matching.
        proposals: of the encoder; 0 for none.
        denoising: queries at least; 0 for none.
    """

    queries: int
    loss_cls: dict[str, Any]
    cls_cost: dict[str, Any]
    proposals: int = 0
    denoising: int = 0


_FOCAL_COST = {"type": "FocalLossCost", "weight": 2.0}
KINDS = {
    "DETRHead": Kind(100, SOFTMAX, {"type": "ClassificationCost", "weight": 1.0}),
    "ConditionalDETRHead": Kind(300, FOCAL, _FOCAL_COST),
    "DABDETRHead": Kind(300, {**FOCAL, "loss_weight": 1.0}, _FOCAL_COST),
    "DeformableDETRHead": Kind(300, FOCAL, _FOCAL_COST),
    "DINOHead": Kind(900, {**FOCAL, "loss_weight": 1.0}, _FOCAL_COST, proposals=22223, denoising=200),
}


@contextmanager
def mmdet_scope() -> Iterator[None]:
    """As in a run of an mmdet config; mmdet's warnings of its own calls are left out."""
    with DefaultScope.overwrite_default_scope("mmdet"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def build_head(name: str, arm: str) -> torch.nn.Module:
    """The head of an arm, of the least width: its layers are not run."""
    kind = KINDS[name]
    of_head, of_assigner = ARMS[arm]
    assigner = {"type": f"{of_assigner}HungarianAssigner", "match_costs": [kind.cls_cost, *BOX_COSTS]}
    config = {
        "type": of_head + name,
        "num_classes": CLASSES,
        "embed_dims": 8,
        "loss_cls": kind.loss_cls,
        "train_cfg": {"assigner": assigner},
    }
    if kind.proposals:
        config["as_two_stage"] = True
    if name in ("DeformableDETRHead", "DINOHead"):
        config["num_pred_layer"] = LAYERS + bool(kind.proposals)
        config["sync_cls_avg_factor"] = True
    with mmdet_scope():
        return MODELS.build(copy.deepcopy(config))


def make_batch(name: str, channels: int, images: int, device: torch.device, seed: int) -> dict[str, Any]:
    """Arguments of `loss_by_feat` by name, in float32; predictions require gradients."""
    kind = KINDS[name]
    g = torch.Generator().manual_seed(seed)
    counts = torch.randint(1, MOST_OBJECTS + 1, (images,), generator=g).tolist()

    def objects(count: int) -> InstanceData:
        size = torch.tensor([IMAGE[1], IMAGE[0]])
        low = torch.rand(count, 2, generator=g) * size * 0.6
        corners = torch.cat([low, low + (torch.rand(count, 2, generator=g) * 0.35 + 0.02) * size], dim=1)
        labels = torch.randint(0, CLASSES, (count,), generator=g)
        return InstanceData(bboxes=corners.to(device), labels=labels.to(device))

    def outputs(*lead: int) -> tuple[Tensor, Tensor]:
        logits = torch.randn(*lead, channels, generator=g) * 2 - 3
        boxes = torch.rand(*lead, 4, generator=g) * 0.4 + 0.1
        return logits.to(device).requires_grad_(), boxes.to(device).requires_grad_()

    groups = max(1, kind.denoising // (2 * max(counts)))
    denoising = 2 * groups * max(counts) if kind.denoising else 0
    logits, boxes = outputs(LAYERS, images, denoising + kind.queries)
    given: dict[str, Any] = {"all_layers_cls_scores": logits, "all_layers_bbox_preds": boxes}
    if name in ("DeformableDETRHead", "DINOHead"):
        proposals = outputs(images, kind.proposals) if kind.proposals else (None, None)
        given |= dict(zip(("enc_cls_scores", "enc_bbox_preds"), proposals, strict=True))
    if denoising:
        given["dn_meta"] = {"num_denoising_queries": denoising, "num_denoising_groups": groups}
    given["batch_gt_instances"] = [objects(count) for count in counts]
    given["batch_img_metas"] = [{"img_shape": IMAGE} for _ in counts]
    return given


def step(head: torch.nn.Module, given: dict[str, Any]) -> dict[str, Tensor]:
    """The losses as scalars; the predictions have their gradients."""
    for value in given.values():
        if isinstance(value, Tensor):
            value.grad = None
    losses = {key: value.sum() for key, value in head.loss_by_feat(**given).items()}
    torch.stack(list(losses.values())).sum().backward()
    return losses


def time_case(
    heads: dict[str, torch.nn.Module], given: dict[str, Any], repeats: int, clock: Callable[[], float]
) -> dict[str, float]:
    """Median milliseconds per arm."""
    on_gpu = given["all_layers_cls_scores"].is_cuda

    def seconds(head: torch.nn.Module, calls: int) -> float:
        start = clock()
        for _ in range(calls):
            step(head, given)
        if on_gpu:
            torch.cuda.synchronize()
        return clock() - start

    with mmdet_scope():
        losses = {arm: step(head, given) for arm, head in heads.items()}
        for arm, own in losses.items():
            torch.testing.assert_close(
                own, losses["stock"], rtol=1e-4, atol=1e-5, msg=lambda text, arm=arm: f"losses of {arm} differ: {text}"
            )
        calls = {arm: calls_to_last(lambda n, head=head: seconds(head, n), SHORTEST) for arm, head in heads.items()}
        times: dict[str, list[float]] = {arm: [] for arm in heads}
        for _ in range(repeats):
            for arm, head in heads.items():
                times[arm].append(seconds(head, calls[arm]) / calls[arm] * 1e3)
    return {arm: statistics.median(values) for arm, values in times.items()}


def line(name: str, images: int, times: dict[str, float]) -> str:
    """One row of the table."""
    ratios = {arm: f" ({times['stock'] / ms:.2f}x)" if arm != "stock" else "" for arm, ms in times.items()}
    cells = [f"{arm} {ms:.2f}{ratios[arm]}" for arm, ms in times.items()]
    return f"{name:19} {images:3} images  " + "  ".join(cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", nargs="+", choices=list(KINDS), default=list(KINDS), help="default: all")
    parser.add_argument("--images", nargs="+", type=int, default=[2, 8], help="images of a batch (default: 2 8)")
    parser.add_argument("--device", default="cpu", type=torch.device, help="cpu or cuda (default: cpu)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch on the CPU (default: %(default)s)")
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="'process': time on the CPU only")
    parser.add_argument("--repeats", type=int, default=7, help="timed runs of each arm (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of what is drawn at random (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write the report here")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    report = describe_machine(args.device) | {"threads": args.threads, "clock": args.clock}
    print(f"{report['device']}, torch {report['torch']}", flush=True)
    rows = []
    progress = Progress(len(args.heads) * len(args.images))
    for name in args.heads:
        heads = {arm: build_head(name, arm).to(args.device) for arm in ARMS}
        for images in args.images:
            progress.step(f"{name}, {images} images")
            given = make_batch(name, heads["stock"].cls_out_channels, images, args.device, args.seed)
            times = time_case(heads, given, args.repeats, CLOCKS[args.clock])
            rows.append({"head": name, "images": images, "ms": times})
            progress.clear()
            print(line(name, images, times), flush=True)
    report["rows"] = rows
    if args.json:
        write_json(report, args.json)


if __name__ == "__main__":
    sys.exit(main())
