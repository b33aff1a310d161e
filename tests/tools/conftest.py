"""A small synthetic data set with info files, made once for all tests of the tools."""

import pytest
from launch import run_tool


@pytest.fixture(scope="session")
def mini_root(tmp_path_factory):
    """Root of a v1.0-mini data set: two training scenes and one for validation, four frames each."""
    root = tmp_path_factory.mktemp("data") / "mini"
    run_tool("tools/create_mini.py", "--out", root, "--scenes", 3, "--frames", 4)
    run_tool("tools/create_infos.py", "--data-root", root, "--version", "v1.0-mini")
    return root
