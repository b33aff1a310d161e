"""The main job, end to end on a small synthetic data set: train, stop, resume, several processes, test."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from launch import ROOT, environment, run_tool
from mmengine.config import Config

SMALL_IMAGES = dict(resize_lim=(0.11, 0.11), final_dim=(64, 176), rand_flip=False)
SMALL_HEAD = dict(
    num_query=24,
    memory_len=24,
    topk_proposals=8,
    num_propagated=8,
    scalar=2,
    transformer=dict(num_layers=2, ffn_dims=64),
)


def _shrink(config, data_root):
    """Make the demo's config small enough for a test: four steps on small images, no data workers."""
    config.merge_from_dict(
        dict(
            model=dict(pts_bbox_head=SMALL_HEAD, use_grid_mask=False),
            train_cfg=dict(max_iters=4, val_interval=100),
            default_hooks=dict(logger=dict(interval=1), checkpoint=dict(interval=2)),
            train_dataloader=dict(batch_size=1),
            visualizer=dict(vis_backends=[dict(type="LocalVisBackend")]),
            randomness=dict(seed=0),
        )
    )
    for loader in (config.train_dataloader, config.val_dataloader, config.test_dataloader):
        loader.update(num_workers=0, persistent_workers=False)
        loader.dataset.data_root = f"{data_root}/"
        for transform in loader.dataset.pipeline:
            if transform.type == "StreamPETRResizeCropFlipTurbo":
                transform.ida_aug_conf.update(SMALL_IMAGES)
    for evaluator in (config.val_evaluator, config.test_evaluator):
        evaluator.update(data_root=f"{data_root}/", ann_file=f"{data_root}/nuscenes_infos_val.pkl")
    return config


@pytest.fixture(scope="module")
def tiny(mini_root, tmp_path_factory):
    """Paths of a tiny per-sample config and of its batched twin."""
    folder = tmp_path_factory.mktemp("configs")
    paths = {}
    for name, twin in (("per_sample", ""), ("batched", "_batched")):
        source = ROOT / f"configs/streampetr/streampetr_r18-352x128_1xb2-demo_nuscenes-mini{twin}.py"
        paths[name] = folder / f"tiny_{name}.py"
        _shrink(Config.fromfile(source, import_custom_modules=False), mini_root).dump(paths[name])
    return paths


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    """Work directories of two trainings from one seed."""
    work = tmp_path_factory.mktemp("work")
    for name, config in tiny.items():
        run_tool("tools/train.py", config, "--work-dir", work / name)
    return {name: work / name for name in tiny}


def _scalars(work_dir):
    """Per step, the logged values of the latest run in a work directory."""
    latest = max(work_dir.glob("*/vis_data/scalars.json"))
    rows = [json.loads(line) for line in latest.read_text().splitlines()]
    return {row["step"]: row for row in rows if "loss" in row}


def test_batched_training_follows_per_sample_training(trained):
    single, batched = _scalars(trained["per_sample"]), _scalars(trained["batched"])
    assert sorted(single) == sorted(batched) == [1, 2, 3, 4]
    for step, row in single.items():
        losses = [key for key in row if "loss" in key]
        assert len(losses) >= 13
        for key in losses:
            assert batched[step][key] == pytest.approx(row[key], rel=1e-3, abs=1e-5), (step, key)


def test_kill_and_resume_continue_the_data_stream(tiny, trained, tmp_path):
    config = tiny["batched"]
    command = [sys.executable, "tools/train.py", str(config), "--work-dir", str(tmp_path)]
    command += ["--cfg-options", "train_cfg.max_iters=400"]
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "last_checkpoint").exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    saved = int((tmp_path / "last_checkpoint").read_text().rsplit("_", 1)[1].removesuffix(".pth"))
    for other in tmp_path.glob("iter_*.pth"):
        assert int(other.stem[5:]) <= saved
    output = run_tool(
        "tools/train.py",
        config,
        "--work-dir",
        tmp_path,
        "--resume",
        "--cfg-options",
        f"train_cfg.max_iters={saved + 2}",
    )
    assert "resumed epoch: 0, iter: " + str(saved) in output
    assert sorted(_scalars(tmp_path)) == [saved + 1, saved + 2]


def test_dead_worker_is_named_and_the_run_resumed(tiny, tmp_path):
    config = tiny["batched"]
    command = [sys.executable, "tools/train.py", str(config), "--work-dir", str(tmp_path), "--cfg-options"]
    command += ["train_cfg.max_iters=400", "train_dataloader.num_workers=1", "train_dataloader.persistent_workers=True"]
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "last_checkpoint").exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(workers[-1]), signal.SIGKILL)
    output, _ = process.communicate(timeout=120)
    sentence = (
        rf"error: a data worker died \(process {workers[-1]}\) (while it was loading frame \d|between two samples)"
    )
    assert process.returncode == 1 and re.search(sentence, output) and "Traceback" not in output, output
    saved = int((tmp_path / "last_checkpoint").read_text().rsplit("_", 1)[1].removesuffix(".pth"))
    iters = f"train_cfg.max_iters={saved + 1}"
    output = run_tool("tools/train.py", config, "--work-dir", tmp_path, "--resume", "--cfg-options", iters)
    assert f"resumed epoch: 0, iter: {saved}" in output and sorted(_scalars(tmp_path)) == [saved + 1]


def test_resumed_run_sees_the_frames_of_the_uninterrupted_one(tiny, trained, tmp_path):
    """Step 3 after a resume at 2 has the weights and the frame of step 3: its 2D losses are the same.

    The 3D losses may differ: the memory of past frames is not in checkpoints, and denoising draws new noise.
    """
    shutil.copy(trained["batched"] / "iter_2.pth", tmp_path)
    run_tool("tools/train.py", tiny["batched"], "--work-dir", tmp_path, "--resume", tmp_path / "iter_2.pth")
    resumed, whole = _scalars(tmp_path), _scalars(trained["batched"])
    assert sorted(resumed) == [3, 4]
    losses = [key for key in whole[3] if key.startswith(("enc_loss", "center"))]
    assert len(losses) == 5
    for key in losses:
        assert resumed[3][key] == pytest.approx(whole[3][key], rel=1e-4), key


def _free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return str(s.getsockname()[1])


def test_two_processes_train_and_test(tiny, tmp_path):
    output = run_tool("tools/dist_train.sh", tiny["batched"], 2, "--work-dir", tmp_path, PORT=_free_port())
    assert "Saving checkpoint at 4 iterations" in output
    results = {}
    for processes in (1, 2):
        folder = tmp_path / f"tested_by_{processes}"
        options = ["--work-dir", folder, "--cfg-options", f"test_evaluator.jsonfile_prefix={folder}"]
        tested = [tiny["batched"], tmp_path / "iter_4.pth"]
        if processes == 1:
            run_tool("tools/test.py", *tested, *options)
        else:
            run_tool("tools/dist_test.sh", *tested, processes, *options, PORT=_free_port())
        metrics = json.loads(max(folder.glob("2*/2*.json")).read_text())
        assert [key for key in metrics if key.endswith("NDS")]
        results[processes] = json.loads((folder / "pred_instances_3d/results_nusc.json").read_text())["results"]
    one, two = results[1], results[2]
    assert sorted(one) == sorted(two)
    assert len(one) == 4
    same = [token for token in one if _scores(one[token]) == pytest.approx(_scores(two[token]), abs=1e-5)]
    assert len(same) >= 2  # the first process has seen the same frames; the second starts within a scene
    assert all(len(boxes) > 0 for boxes in one.values())


def _scores(boxes):
    return sorted((box["detection_score"] for box in boxes), reverse=True)[:20]


def test_pictures_of_the_results(tiny, trained, tmp_path):
    tested = [tiny["batched"], trained["batched"] / "iter_4.pth"]
    output = run_tool("tools/test.py", *tested, "--work-dir", tmp_path, "--show-dir", "drawn")
    assert len(list(tmp_path.glob("*/drawn/*.png"))) == 4
    assert "4 pictures in" in output


def test_two_nodes_on_one_machine(tiny, tmp_path):
    port = _free_port()

    def node(rank):
        return run_tool(
            "tools/dist_train.sh",
            tiny["batched"],
            1,
            "--work-dir",
            tmp_path / "work",
            NNODES="2",
            NODE_RANK=str(rank),
            PORT=port,
        )

    with ThreadPoolExecutor(2) as pool:
        outputs = list(pool.map(node, (0, 1)))
    assert "Saving checkpoint at 4 iterations" in outputs[0]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["tools/train.py", "configs/none.py"], "no config file configs/none.py"),
        (["tools/test.py", "{config}", "none.pth"], "no checkpoint file none.pth"),
        (["tools/train.py", "{config}", "--cfg-options", "train_dataloader.dataset.data_root=/no/data/"], "/no/data"),
        (["tools/train.py", "{config}", "--cfg-options", "model.img_neck.type=NoSuchNeck"], "NoSuchNeck"),
        (["tools/train.py", "{config}", "--cfg-options", "model.pts_bbox_head.num_qury=3"],
         "BatchedStreamPETRHead takes no key 'num_qury'; did you mean 'num_query'?"),
        (["tools/train.py", "{config}", "--cfg-options", "train_dataloader.dataset.pipeline.0.num_thread=1"],
         "takes no key 'num_thread'; did you mean 'num_threads'?"),
        (
            ["tools/train.py", "{config}", "--cfg-options",
             "model.pts_bbox_head.train_cfg.assigner.type=PerSampleHungarianAssigner3D"],
            "use BatchedHungarianAssigner3D",
        ),
        (["tools/train.py", "{config}", "--cfg-options", "train_dataloader.batch_size=64"], "64"),
        (["tools/train.py", "{config}", "--cfg-options", "train_dataloader.dataset.metainfo.version=v1.0-trainval"],
         "v1.0-trainval"),
        (["tools/train.py", "{config}", "--amp"], "needs a CUDA device"),
        (["tools/train.py", "{config}", "--resume", "README.md"], "README.md cannot be read as a checkpoint"),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence(tiny, tmp_path, arguments, sentence):
    arguments = [a.format(config=tiny["batched"]) for a in arguments]
    output = run_tool(*arguments, "--work-dir", tmp_path, expect=1)
    errors = [line for line in output.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert sentence in errors[0]
    assert "Traceback" not in output and "\n\nerror: " in f"\n{output}"


def test_broken_image_in_a_worker(tiny, mini_root, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(mini_root, data)
    for image in (data / "samples/CAM_BACK").iterdir():
        image.write_bytes(image.read_bytes()[:2000])
    output = run_tool(
        "tools/train.py", tiny["batched"], "--work-dir", tmp_path / "work", "--cfg-options",
        f"train_dataloader.dataset.data_root={data}/", "train_dataloader.num_workers=1", expect=1,
    )  # fmt: skip
    errors = [line for line in output.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert f"{data}/samples/CAM_BACK" in errors[0]
    assert "Traceback" not in output.replace("shows the traceback", "")


def test_nan_is_reported_and_training_goes_on(tiny, tmp_path):
    """A learning rate that blows the weights up: the run ends all the same, and says what happened."""
    options = ["optim_wrapper.optimizer.lr=1e30", "param_scheduler=None", "custom_hooks.1.interval=1"]
    output = run_tool("tools/train.py", tiny["batched"], "--work-dir", tmp_path, "--cfg-options", *options)
    assert "pts_bbox_head.transformer (StreamPETRTransformer) predicted NaN or infinity by iteration" in output
    assert sorted(_scalars(tmp_path)) == [1, 2, 3, 4]


def test_checkpoint_of_another_model(tiny, trained, tmp_path):
    output = run_tool(
        "tools/test.py", tiny["batched"], trained["batched"] / "iter_4.pth", "--work-dir", tmp_path,
        "--cfg-options", "model.pts_bbox_head.num_query=12", expect=1,
    )  # fmt: skip
    assert "error: the checkpoint is of another model" in output
