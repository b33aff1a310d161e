"""The loader benchmark measures both ways on the same files, writes report and chart, and names bad input."""

import importlib
import json
import re
import shutil
import sys

import cv2
import numpy as np
import pytest
import torch
from launch import ROOT
from PIL import Image

CAMERAS = ("CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_FRONT_LEFT", "CAM_BACK", "CAM_BACK_LEFT", "CAM_BACK_RIGHT")


@pytest.fixture(scope="module")
def tool():
    """The tool as a module; the processes it would start take longer than its work."""
    threads = torch.get_num_threads(), cv2.getNumThreads()
    sys.path.insert(0, str(ROOT / "tools"))
    yield importlib.import_module("benchmark_data")
    sys.path.remove(str(ROOT / "tools"))
    torch.set_num_threads(threads[0])
    cv2.setNumThreads(threads[1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A frame of six images with something to see in them."""
    root = tmp_path_factory.mktemp("samples")
    rng = np.random.default_rng(0)
    for camera in CAMERAS:
        (root / camera).mkdir()
        coarse = rng.integers(0, 255, (9, 16, 3), dtype=np.uint8)
        cv2.imwrite(str(root / camera / "0.jpg"), cv2.resize(coarse, (1600, 900), interpolation=cv2.INTER_CUBIC))
    return root


def test_report_and_chart(tool, folder, tmp_path, capsys):
    report, chart = tmp_path / "out" / "data.json", tmp_path / "out" / "data.png"
    sizes = (
        "--transfer-batch-size",
        2,
        "--batch-size",
        1,
        "--steps",
        1,
        "--repeats",
        1,
        "--workers",
        0,
        1,
        "--threads",
        2,
    )
    files = ("--images", folder, "--json", report, "--chart", chart)
    kinds = ("--pipelines", "resize", "streampetr")
    assert tool.main([str(argument) for argument in (*files, *sizes, *kinds)]) == 0
    output = capsys.readouterr().out
    found = json.loads(report.read_text())
    assert found["files"] | {"mean_kilobytes": 0} == {
        "images": 6,
        "mean_kilobytes": 0,
        "size": [1600, 900],
        "rendered": False,
    }
    assert {"mmcv", "mmdet3d transforms", "turbo, 1 thread", "turbo, full size, 2 threads"} <= set(found["frame"])
    assert all(row["milliseconds"] > 0 for row in found["frame"].values())
    assert found["frame"]["mmcv"]["over_mmcv"] == 1
    kinds = [(row["pipeline"], row["workers"]) for row in found["loader"]]
    assert kinds == [(kind, workers) for kind in ("resize", "streampetr") for workers in (0, 1)]
    for row in found["loader"]:
        assert row["ratio"] == pytest.approx(
            row["turbo"]["samples_per_second"] / row["stock"]["samples_per_second"], abs=0.01
        )
        assert row["turbo"]["images_per_second"] == pytest.approx(6 * row["turbo"]["samples_per_second"], rel=0.02)
    assert [(row["num_workers"], row["batch_size"]) for row in found["transfer"]] == [(0, 2), (1, 2)]
    assert found["transfer"][1]["speedup"] > 1 and "ragged_collate" in output
    pixels = found["pixels"]
    assert pixels["decoded at full size, against mmcv"] == {"mean": 0, "max": 0, "psnr": None}
    assert pixels["full size, bicubic, against Pillow"]["max"] <= 1
    assert pixels["scaled, bicubic, against Pillow"]["psnr"] > 30
    assert "turbo, 1 thread" in output and "6 files of 1600x900" in output
    with Image.open(chart) as image:
        assert image.width > 1000


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("--images", "no/such/folder"), 1, "error: no folder no/such/folder"),
        (("--images", str(ROOT / "csrc")), 1, "csrc has 0 images, a frame needs 6"),
        (("--steps", "0"), 2, "--steps must be at least 1, got 0"),
        (("--device", "moon"), 2, "--device must be cpu, or cuda where torch finds one, got moon"),
        (("--workers", "-1"), 2, "--workers not negative"),
    ],
)
def test_bad_input(tool, arguments, status, message, capsys):
    try:
        ended = tool.main(arguments)
    except SystemExit as end:
        ended = end.code
    assert ended == status
    assert message in capsys.readouterr().err


BAD_FILES = {
    "cut": (lambda good: good[: len(good) // 2], r"CAM_BACK/0.jpg is broken \(\d+ bytes\)"),
    "damaged": (lambda good: good[: len(good) // 2] + b"\xff\xd9", "CAM_BACK/0.jpg is damaged"),
    "small": (
        lambda good: cv2.imencode(".jpg", np.zeros((90, 160, 3), np.uint8))[1].tobytes(),
        r"must have one size: .*CAM_FRONT/0.jpg has \(900, 1600, 3\), .*CAM_BACK/0.jpg has \(90, 160, 3\)",
    ),
}


@pytest.mark.parametrize(("change", "message"), BAD_FILES.values(), ids=BAD_FILES)
def test_bad_files_are_told_before_anything_is_measured(tool, folder, tmp_path, change, message, capsys):
    samples = tmp_path / "samples"
    shutil.copytree(folder, samples)
    path = samples / "CAM_BACK" / "0.jpg"
    path.write_bytes(change(path.read_bytes()))
    assert tool.main(["--images", str(samples)]) == 1
    printed = capsys.readouterr()
    assert re.search(f"^error: .*{message}", printed.err) and "frame:" not in printed.out + printed.err


def test_size_that_a_pipeline_does_not_take(tool, tmp_path, capsys):
    for number in range(6):
        cv2.imwrite(str(tmp_path / f"{number}.jpg"), np.zeros((90, 160, 3), np.uint8))
    assert tool.main(["--images", str(tmp_path)]) == 1
    message = (
        "streampetr takes images of 1600x900, .*/0.jpg has 160x90: leave it out with --pipelines resize photometric"
    )
    assert re.search(message, capsys.readouterr().err)
