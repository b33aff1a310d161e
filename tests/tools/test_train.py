"""The main job, end to end on a small synthetic data set: train, stop, resume, several processes, test."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from launch import ROOT, environment, run_tool

TINY = """
_base_ = ['{root}/configs/streampetr/streampetr_r18-352x128_1xb2-demo_nuscenes-mini{twin}.py']
ida_aug_conf = dict(resize_lim=(0.11, 0.11), final_dim=(64, 176), rand_flip=False)
train_pipeline = {{{{_base_.train_pipeline}}}}
train_pipeline[4].ida_aug_conf.update(resize_lim=(0.11, 0.11), final_dim=(64, 176))
test_pipeline = {{{{_base_.test_pipeline}}}}
test_pipeline[1].ida_aug_conf.update(resize_lim=(0.11, 0.11), final_dim=(64, 176))
model = dict(pts_bbox_head=dict(num_query=24, memory_len=24, topk_proposals=8, num_propagated=8, scalar=2,
                                transformer=dict(num_layers=2, ffn_dims=64)))
data_root = '{data}/'
train_cfg = dict(max_iters=4, val_interval=100)
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval=2))
train_dataloader = dict(batch_size=1, num_workers=0, persistent_workers=False,
                        dataset=dict(data_root=data_root, pipeline=train_pipeline))
val_dataloader = dict(num_workers=0, persistent_workers=False,
                      dataset=dict(data_root=data_root, pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(data_root=data_root, ann_file=data_root + 'nuscenes_infos_val.pkl')
test_evaluator = val_evaluator
randomness = dict(seed=0)
vis_backends = [dict(type='LocalVisBackend')]
visualizer = dict(vis_backends=vis_backends)
"""


@pytest.fixture(scope="module")
def tiny(mini_root, tmp_path_factory):
    """Paths of a tiny per-sample config and of its batched twin."""
    folder = tmp_path_factory.mktemp("configs")
    paths = {}
    for name, twin in (("per_sample", ""), ("batched", "_batched")):
        paths[name] = folder / f"tiny_{name}.py"
        paths[name].write_text(TINY.format(root=ROOT, twin=twin, data=mini_root))
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


def test_resumed_run_sees_the_frames_of_the_uninterrupted_one(tiny, trained, tmp_path):
    """Steps 3 and 4 after a resume at 2 use the data of steps 3 and 4: the 2D losses of the same weights agree."""
    config = tiny["batched"]
    run_tool("tools/train.py", config, "--work-dir", tmp_path, "--cfg-options", "train_cfg.max_iters=2")
    run_tool("tools/train.py", config, "--work-dir", tmp_path, "--resume")
    resumed, whole = _scalars(tmp_path), _scalars(trained["batched"])
    assert sorted(resumed) == [3, 4]
    assert resumed[3]["enc_loss_iou"] == pytest.approx(whole[3]["enc_loss_iou"], rel=1e-3)


def _free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return str(s.getsockname()[1])


def test_two_processes_train_and_test(tiny, tmp_path):
    output = run_tool("tools/dist_train.sh", tiny["batched"], 2, "--work-dir", tmp_path, PORT=_free_port())
    assert "Saving checkpoint at 4 iterations" in output
    single = run_tool("tools/test.py", tiny["batched"], tmp_path / "iter_4.pth", "--work-dir", tmp_path / "one")
    double = run_tool(
        "tools/dist_test.sh",
        tiny["batched"],
        tmp_path / "iter_4.pth",
        2,
        "--work-dir",
        tmp_path / "two",
        PORT=_free_port(),
    )
    for text in (single, double):
        assert "NDS" in text
    assert _final_metrics(tmp_path / "one") == pytest.approx(_final_metrics(tmp_path / "two"), abs=1e-3)


def _final_metrics(work_dir):
    latest = max(p for p in work_dir.glob("*/*.json"))
    values = json.loads(latest.read_text())
    return {key: value for key, value in values.items() if key.endswith(("NDS", "mAP"))}


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
        (
            ["tools/train.py", "{config}", "--cfg-options",
             "model.pts_bbox_head.train_cfg.assigner.type=PerSampleHungarianAssigner3D"],
            "use BatchedHungarianAssigner3D",
        ),
        (["tools/train.py", "{config}", "--cfg-options", "train_dataloader.batch_size=64"], "64"),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence(tiny, tmp_path, arguments, sentence):
    arguments = [a.format(config=tiny["batched"]) for a in arguments]
    output = run_tool(*arguments, "--work-dir", tmp_path, expect=1)
    errors = [line for line in output.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert sentence in errors[0]
    assert "Traceback" not in output


def test_checkpoint_of_another_model(tiny, trained, tmp_path):
    output = run_tool(
        "tools/test.py", tiny["batched"], trained["batched"] / "iter_4.pth", "--work-dir", tmp_path,
        "--cfg-options", "model.pts_bbox_head.num_query=12", expect=1,
    )  # fmt: skip
    assert "error: the checkpoint is of another model" in output
