"""The benchmark's command line: report, chart, and one sentence for what cannot work."""

import importlib.util
import json
import pickle
import subprocess
import sys

import pytest
import torch
from launch import ROOT, environment

sys.path.insert(0, str(ROOT / "tools"))
import benchmark_loss

from raggedbev.profiling.report import MAIN_ROWS

CONFIG = "configs/streampetr/streampetr_r18-352x128_1xb2-demo_nuscenes-mini.py"
QUICK = ["small", "--batch-size", "1", "--repeats", "1"]


def test_report_table_and_chart(tmp_path, capsys):
    report, chart = tmp_path / "new" / "out.json", tmp_path / "out.png"
    assert benchmark_loss.main([*QUICK, "--json", str(report), "--chart", str(chart)]) == 0
    text = capsys.readouterr().out
    words = ("published, reference, batched compared", "StreamPETR Head", "Focal Head", "host syncs", "peak memory")
    assert all(word in text for word in words)
    content = json.loads(report.read_text())
    assert list(content["arms"]) == ["published", "reference", "batched"]
    assert (content["config"], content["batch_size"], content["scope"]) == ("small", 1, "loss")
    assert 30 <= content["objects_per_sample"][0] <= 60
    for arm in content["arms"].values():
        assert arm["Loss"] >= arm["StreamPETR Head"] + arm["Focal Head"] > 0
    assert content["speedup"]["Loss"] == pytest.approx(
        content["arms"]["reference"]["Loss"] / content["arms"]["batched"]["Loss"], rel=1e-2
    )
    assert content["agreement"]["losses"] < 1e-5
    syncs = {name: arm["host_syncs"] for name, arm in content["arms"].items()}
    assert syncs["batched"] == 0 < syncs["reference"] < syncs["published"]
    memory = {name: arm["peak_memory_mib"] for name, arm in content["arms"].items()}
    assert 0.0 < memory["batched"] < memory["reference"] and set(content["first_call_s"]) == set(memory)
    assert chart.read_bytes().startswith(b"\x89PNG")


def test_batch_sizes_in_one_run(tmp_path, capsys):
    arguments = ["small", "--batch-sizes", "2", "1", "--repeats", "1", "--arms", "reference", "batched"]
    assert benchmark_loss.main([*arguments, "--out", str(tmp_path / "new")]) == 0
    content = json.loads((tmp_path / "new" / "report.json").read_text())
    assert list(content["sweep"]) == ["1", "2"] and content["batch_size"] == 2
    for size, entry in content["sweep"].items():
        assert len(entry["objects_per_sample"]) == int(size) and entry["agreement"]["losses"] < 1e-5
        assert entry["arms"]["batched"]["Loss"] > 0.0 and entry["speedups"]["reference"]["batched"]["Loss"] > 0.0
    assert "batched / ref." in capsys.readouterr().out
    for name in ("stages.png", "growth.png"):
        assert (tmp_path / "new" / name).read_bytes().startswith(b"\x89PNG")


def test_a_compiler_that_fails_is_one_sentence(monkeypatch, capsys):
    def fail(*args, **kwargs):
        raise torch._dynamo.exc.TorchDynamoException("no C++ compiler\nand more")

    monkeypatch.setattr(benchmark_loss, "compare_arms", fail)
    assert benchmark_loss.main([*QUICK, "--arms", "batched+compile"]) == 1
    errors = capsys.readouterr().err
    assert errors == "error: the arm batched+compile cannot be compiled here (no C++ compiler)\n"


def test_a_batch_that_does_not_fit_is_one_sentence(monkeypatch, capsys):
    def fail(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(benchmark_loss, "compare_arms", fail)
    assert benchmark_loss.main(QUICK) == 1
    assert "the largest batch does not fit into the device's memory" in capsys.readouterr().err


def test_arms_that_disagree_fail(monkeypatch, capsys):
    monkeypatch.setattr(benchmark_loss, "AGREEMENT", -1.0)
    assert benchmark_loss.main(QUICK) == 1
    assert "the arms' losses differ by" in capsys.readouterr().err


def test_a_chosen_arm_and_trained_predictions(tmp_path):
    report = tmp_path / "out.json"
    arguments = [*QUICK, "--arms", "batched", "--predictions", "trained", "--json", str(report)]
    assert benchmark_loss.main(arguments) == 0
    content = json.loads(report.read_text())
    assert list(content["arms"]) == ["batched"] and content["predictions"] == "trained"


def test_ground_truth_of_an_info_file(tmp_path):
    instance = {"bbox_3d": [1.0, 2.0, 0.0, 4.0, 2.0, 1.5, 0.3], "velocity": [1.0, 0.0], "bbox_label_3d": 0}
    seen = {"bbox": [800.0, 450.0, 900.0, 600.0], "bbox_label": 4, "center_2d": [850.0, 500.0], "depth": 9.0}
    frame = {"instances": [instance] * 3, "cam_instances": {f"CAM_{i}": [seen] * i for i in range(6)}}
    path, report = tmp_path / "infos.pkl", tmp_path / "out.json"
    path.write_bytes(pickle.dumps({"data_list": [frame]}))
    assert benchmark_loss.main([*QUICK, "--infos", str(path), "--json", str(report)]) == 0
    content = json.loads(report.read_text())
    assert content["objects_per_sample"] == [3] and content["objects_2d"] == 15


BAD = {
    "unknown preset": (["large"], "presets are streampetr_r50_704, streampetr_r50_428q, small"),
    "no device of that name": (["--device", "mps"], "--device must be cpu or cuda, got mps"),
    "no samples": (["--batch-size", "0"], "--batch-size must be at least 1, got 0"),
    "a batch size twice": (["--batch-sizes", "2", "2"], "must be different numbers of at least 1, got [2, 2]"),
    "both kinds of batch size": (["--batch-size", "1", "--batch-sizes", "2"], "exclude each other"),
    "growth of one batch size": (["--growth-chart", "x.png"], "give --batch-sizes as well"),
    "graphs on the cpu": (["--arms", "batched+graph"], "need --device cuda, got cpu"),
    "no repeats": (["--repeats", "0"], "--repeats must be at least 1, got 0"),
    "iteration of a preset": (["small", "--scope", "iteration"], "needs an mm config, got the preset small"),
    "data of a preset": (["small", "--real-data"], "belongs to --scope iteration"),
    "weights of a preset": (["small", "--checkpoint", "x.pth"], "--checkpoint belongs to --scope iteration"),
    "no info file": (["small", "--infos", "none.pkl"], "no info file at none.pkl"),
    "no config file": (["configs/none.py", "--scope", "iteration"], "no config file configs/none.py"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence(case, capsys):
    arguments, message = BAD[case]
    assert benchmark_loss.main(arguments) == 1
    errors = capsys.readouterr().err
    assert errors.startswith("error: ") and message in errors and errors.count("\n") == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_that_is_not_there_is_one_sentence(capsys):
    assert benchmark_loss.main(["small", "--device", "cuda"]) == 1
    assert "torch finds no CUDA device on this machine" in capsys.readouterr().err


@pytest.mark.parametrize(("package", "arguments"), [("mmengine", [CONFIG]), ("matplotlib", ["--chart", "x.png"])])
def test_missing_packages_are_named(package, arguments, monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find(name))
    assert benchmark_loss.main(arguments) == 1
    assert f"needs {package}, which is not installed" in capsys.readouterr().err


def test_the_loss_scope_imports_no_mm_package():
    code = (
        "import sys; sys.path.insert(0, 'tools'); import benchmark_loss as b;"
        f"b.main({QUICK!r});"
        "sys.exit(any(m in sys.modules for m in ('mmengine', 'mmcv', 'mmdet', 'mmdet3d', 'matplotlib')))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment(), capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr.decode()


TINY = """
_base_ = ['{base}']
model = dict(pts_bbox_head=dict(
    num_query=20, memory_len=20, topk_proposals=10, num_propagated=10, transformer=dict(num_layers=2, ffn_dims=32)))
train_dataloader = dict(batch_size=1, dataset=dict(pipeline=[dict(type='X', ida_aug_conf=dict(final_dim=(64, 96)))]))
"""


@pytest.fixture
def tiny_config(tmp_path):
    path = tmp_path / "tiny.py"
    path.write_text(TINY.format(base=ROOT / CONFIG))
    return path


def test_whole_iterations_of_a_config(tiny_config, tmp_path):
    report = tmp_path / "out.json"
    arguments = [str(tiny_config), "--scope", "iteration", "--repeats", "1", "--json", str(report)]
    assert benchmark_loss.main(arguments) == 0
    content = json.loads(report.read_text())
    assert list(content["arms"]) == ["published", "reference", "batched"] and content["batch_size"] == 1
    for arm in content["arms"].values():
        assert all(arm[row] is not None and arm[row] >= 0.0 for row in MAIN_ROWS if row != "Data")
        assert arm["Data"] is None
        assert arm["Training Iteration"] >= arm["Forward"] + arm["Optimization"]
        assert arm["Forward"] >= arm["Loss"] >= arm["StreamPETR Head"] + arm["Focal Head"]
        assert {"StreamPETR Head > cost", "Focal Head > matching", "Optimization > backward"} <= set(arm)
    assert content["agreement"]["losses"] < 1e-5
    assert content["arms"]["batched"]["host_syncs"] < content["arms"]["published"]["host_syncs"]


def test_the_loss_scope_reads_sizes_and_weights_of_a_config(tiny_config):
    from shared import benchmark_iteration

    config = benchmark_iteration.load_config(tiny_config)
    config.model.pts_bbox_head.loss_bbox.loss_weight = 0.5
    config.model.img_roi_head.train_cfg.assigner.reg_cost.weight = 7.0
    sizes, settings = benchmark_iteration.sizes_of(config), benchmark_iteration.settings_of(config)
    assert (sizes.num_query, sizes.num_layers, sizes.token_grid) == (30, 2, (4, 6))
    assert settings.head_3d.bbox_weight == 0.5 and settings.matcher_2d.reg_weight == 7.0
    assert benchmark_loss.main([str(tiny_config), "--batch-size", "1", "--repeats", "1"]) == 0


def test_twins_swap_types_and_nothing_else():
    from shared import benchmark_iteration

    model = {"type": "X", "head": {"type": "PerSampleHead", "name": "PerSample", "parts": [{"type": "PerSampleA"}, 1]}}
    batched = benchmark_iteration.twin(model, batched=True)
    assert batched["head"] == {"type": "BatchedHead", "name": "PerSample", "parts": [{"type": "BatchedA"}, 1]}
    assert benchmark_iteration.twin(batched, batched=False) == model


def test_published_loading_stands_for_the_fast_one():
    from mmdet3d.registry import TRANSFORMS
    from shared import benchmark_iteration

    config = benchmark_iteration.load_config(ROOT / CONFIG)
    steps = [benchmark_iteration.published_loading(step) for step in config.train_dataloader.dataset.pipeline]
    types = [step["type"] for step in steps]
    assert types[0] == "LoadMultiViewImages" and "StreamPETRResizeCropFlip" in types
    for step in steps:
        TRANSFORMS.build(step)  # no argument that it does not know


ON_DATA = """
_base_ = ['{base}']
model = dict(pts_bbox_head=dict(
    num_query=20, memory_len=20, topk_proposals=10, num_propagated=10, transformer=dict(num_layers=1, ffn_dims=32)))
train_dataloader = dict(batch_size=1, dataset=dict(data_root='{root}/'))
"""


def test_steps_that_load_their_batches(mini_root, tmp_path):
    path, report = tmp_path / "on_data.py", tmp_path / "out.json"
    path.write_text(ON_DATA.format(base=ROOT / CONFIG, root=mini_root))
    options = ["--scope", "iteration", "--real-data", "--load-data", "--repeats", "1", "--arms", "published", "batched"]
    assert benchmark_loss.main([str(path), *options, "--json", str(report)]) == 0
    content = json.loads(report.read_text())
    assert content["data_in_step"] is True
    for arm in content["arms"].values():
        assert arm["Training Iteration"] >= arm["Data"] + arm["Forward"] + arm["Optimization"] > arm["Data"] > 0.0
    assert content["speedup"]["Data"] > 1.0  # Pillow against libjpeg-turbo


def test_loading_needs_data(capsys):
    assert benchmark_loss.main([CONFIG, "--scope", "iteration", "--load-data"]) == 1
    assert "--load-data needs --real-data" in capsys.readouterr().err


def test_a_config_of_another_model_is_one_sentence(tmp_path, capsys):
    path = tmp_path / "other.py"
    path.write_text("model = dict(type='X')\ntrain_dataloader = dict(batch_size=1)\n")
    for scope in ("loss", "iteration"):
        assert benchmark_loss.main([str(path), "--scope", scope]) == 1
        assert "is no StreamPETR config" in capsys.readouterr().err
