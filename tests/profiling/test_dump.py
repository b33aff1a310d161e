"""Tensor dumps: nested values survive the file, and differences are found, named and measured."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from raggedbev.profiling import compare_dumps, format_differences, load_dump, save_dump


@dataclass
class Pair:
    left: torch.Tensor
    right: torch.Tensor | None = None


def test_nested_values_come_back(tmp_path):
    values = {
        "losses": {"d0": torch.tensor(1.5), "file": 2},
        "boxes": [torch.ones(2, 3, requires_grad=True), np.zeros((0, 4), np.int64)],
        "pair": Pair(torch.tensor([True, False])),
        "half": torch.ones(2, dtype=torch.bfloat16),
        "name": "step 3",
    }
    path = tmp_path / "new" / "a.npz"
    names = save_dump(path, values)
    assert names == ["losses.d0", "losses.file", "boxes.0", "boxes.1", "pair.left", "half", "name"]
    back = load_dump(path)
    assert back["boxes.0"].shape == (2, 3) and back["boxes.1"].shape == (0, 4)
    assert back["pair.left"].tolist() == [True, False]
    assert back["half"].dtype == np.float32 and back["losses.d0"] == 1.5 and str(back["name"]) == "step 3"
    assert all(d.agrees for d in compare_dumps(path, path, rtol=0.0))


def test_names_that_clash_and_values_that_are_no_tensors_are_errors(tmp_path):
    with pytest.raises(ValueError, match=r"two values .* 'a\.b'"):
        save_dump(tmp_path / "a.npz", {"a.b": 1, "a": {"b": 2}})
    with pytest.raises(TypeError, match=r"a\.0 cannot be dumped"):
        save_dump(tmp_path / "a.npz", {"a": [object()]})


def test_missing_and_foreign_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no tensor dump at .*none\.npz"):
        load_dump(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(ValueError, match=r"text\.npz is not a tensor dump"):
        load_dump(tmp_path / "text.npz")


def test_differences_are_measured():
    right = {"x": np.array([[1.0, 2.0], [4.0, 0.0]])}
    wrong = {"x": np.array([[1.0, 2.0], [4.4, 0.0]])}
    (found,) = compare_dumps(wrong, right, rtol=1e-3)
    assert not found.agrees
    assert found.max_abs == pytest.approx(0.4) and found.max_rel == pytest.approx(0.1)
    assert (found.num_outside, found.size, found.worst) == (1, 4, (1, 0))
    assert compare_dumps(wrong, right, rtol=0.11)[0].agrees
    assert compare_dumps(wrong, right, rtol=0.0, atol=0.41)[0].agrees


def test_nan_and_inf_equal_themselves_only():
    special = np.array([np.nan, np.inf, -np.inf, 1.0])
    assert compare_dumps({"x": special}, {"x": special}, rtol=0.0)[0].agrees
    for position, value in ((0, 1.0), (1, 1.0), (1, -np.inf), (3, np.nan), (3, np.inf)):
        other = special.copy()
        other[position] = value
        for first, second in ((special, other), (other, special)):
            (found,) = compare_dumps({"x": first}, {"x": second}, rtol=1e3)
            assert found.num_outside == 1 and found.worst == (position,)


def test_arrays_of_other_names_and_shapes_are_told_and_come_first():
    shared = {"same": np.ones(3), "empty": np.zeros(0)}
    a = {**shared, "gone": np.ones(1), "shape": np.ones((2, 1)), "text": np.asarray("a")}
    b = {**shared, "new": np.ones(1), "shape": np.ones((1, 2)), "text": np.asarray("b")}
    found = compare_dumps(a, b)
    assert [d.agrees for d in found] == [False] * 4 + [True] * 2
    problems = {d.name: d.problem for d in found}
    assert problems["gone"] == "only in the first dump" and problems["new"] == "only in the second dump"
    assert problems["shape"] == "shapes (2, 1) and (1, 2)"
    text = format_differences(found, limit=5)
    assert "DIFFER gone: only in the first dump" in text and "... and 1 more" in text
    assert text.endswith("2 of 6 arrays agree")
