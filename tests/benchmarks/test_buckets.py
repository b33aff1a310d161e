"""Padded lengths of an epoch, counted: drawn ones, and those of an info file."""

from __future__ import annotations

import importlib.util
import pickle
from pathlib import Path

PATH = Path(__file__).resolve().parents[2] / "benchmarks" / "buckets.py"
spec = importlib.util.spec_from_file_location("buckets_benchmark", PATH)
buckets = importlib.util.module_from_spec(spec)
spec.loader.exec_module(buckets)


def rows(capsys):
    return [line.split() for line in capsys.readouterr().out.splitlines()[2:]]


def test_drawn_epochs(capsys):
    assert buckets.main(["--samples", "400", "--batch-sizes", "8"]) == 0
    (batch, head, exact, *bucketed), flat = rows(capsys)
    assert (batch, head, flat[1]) == ("8", "3D", "2D")
    assert int(exact) > int(bucketed[0]) >= int(bucketed[1]) >= int(bucketed[2]) >= 1


def test_an_info_file(tmp_path, capsys):
    instance = {"bbox_3d": [1.0, 2.0, 0.0, 4.0, 2.0, 1.5, 0.3], "velocity": [1.0, 0.0], "bbox_label_3d": 0}
    seen = {"bbox": [800.0, 450.0, 900.0, 600.0], "bbox_label": 4, "center_2d": [850.0, 500.0], "depth": 9.0}
    frames = [
        {"instances": [instance] * count, "cam_instances": {f"CAM_{i}": [seen] * 3 for i in range(6)}}
        for count in (5, 9, 17)
    ]
    path = tmp_path / "infos.pkl"
    path.write_bytes(pickle.dumps({"data_list": frames}))
    assert buckets.main(["--infos", str(path), "--batch-sizes", "1"]) == 0
    assert rows(capsys) == [["1", "3D", "3", "3", "2", "1"], ["1", "2D", "1", "1", "1", "1"]]


def test_bad_input_is_one_sentence(capsys):
    assert buckets.main(["--batch-sizes", "0"]) == 1
    assert buckets.main(["--infos", "none.pkl"]) == 1
    errors = capsys.readouterr().err.splitlines()
    assert errors[0] == "error: need batches of at least 1 of 28130 samples, got [0]"
    assert errors[1].startswith("error: no info file at none.pkl")
