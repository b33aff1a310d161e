"""The set-up: what it says when something is missing, and that it does nothing twice."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import threading
from collections import namedtuple
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
SETUP = ROOT / "scripts" / "setup.sh"


@pytest.fixture
def bootstrap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A fresh copy of scripts/bootstrap.py that works on a checkout, a cache and a `.venv` of its own."""
    spec = importlib.util.spec_from_file_location("bootstrap_under_test", ROOT / "scripts" / "bootstrap.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    checkout = tmp_path / "checkout"
    for folder in ("requirements", "csrc"):
        shutil.copytree(ROOT / folder, checkout / folder)
    for file in ("setup.py", "pyproject.toml"):
        shutil.copy(ROOT / file, checkout)
    venv = checkout / ".venv"
    paths = {"ROOT": checkout, "VENV": venv, "VENV_PYTHON": venv / "bin" / "python", "STAMPS": venv / ".raggedbev"}
    paths |= {"REQUIREMENTS": checkout / "requirements", "LOGS": checkout / "build" / "logs"}
    for name, path in paths.items():
        monkeypatch.setattr(module, name, path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "torch_build", lambda: ("2.13.0+cpu", None))
    return module


def executable(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def fake_venv_python(bootstrap: ModuleType, script: str) -> None:
    executable(bootstrap.VENV_PYTHON, f"#!{sys.executable}\n{script}")


# What setup.sh says of interpreters ----------------------------------------------------------------------------------


def run_setup(tmp_path: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a copy of setup.sh in a checkout without .venv, with only `tmp_path/bin` and the shell's tools on PATH."""
    script = tmp_path / "checkout" / "scripts" / "setup.sh"
    script.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(SETUP, script)
    binaries = tmp_path / "bin"
    binaries.mkdir(exist_ok=True)
    (binaries / "dirname").exists() or (binaries / "dirname").symlink_to(shutil.which("dirname"))
    return subprocess.run(
        ["/bin/sh", str(script), *arguments], env={"PATH": str(binaries)} | environment, capture_output=True, text=True
    )


@pytest.mark.parametrize("version", ["2.7.18", "3.9.18", "3.13.0"])
def test_unsupported_python(tmp_path: Path, version: str) -> None:
    python = executable(tmp_path / "python", f"#!/bin/sh\necho {version}\n")
    done = run_setup(tmp_path, PYTHON=str(python))
    assert done.returncode != 0
    assert done.stderr == f"raggedbev: needs Python 3.10 to 3.12, but PYTHON={python} is Python {version}.\n"


def test_named_python_does_not_run(tmp_path: Path) -> None:
    done = run_setup(tmp_path, PYTHON="/no/such/python")
    assert done.returncode != 0
    assert "PYTHON=/no/such/python is not a Python that runs" in done.stderr


def test_no_python_at_all(tmp_path: Path) -> None:
    executable(tmp_path / "bin" / "python3", "#!/bin/sh\necho 3.13.1\n")
    done = run_setup(tmp_path)
    assert done.returncode != 0
    assert done.stderr.startswith("raggedbev: needs Python 3.10 to 3.12, but none of python3.11 python3.12")
    assert done.stderr.count("\n") == 1


def test_unknown_argument(tmp_path: Path) -> None:
    done = run_setup(tmp_path, "--wich")
    assert done.returncode == 2
    assert done.stderr == "raggedbev: set-up takes no argument but --which and --help, got --wich.\n"


@pytest.mark.parametrize(
    ("installed", "chosen"),
    [
        ({"python3.11": "3.11.2", "python3.12": "3.12.1", "python3.10": "3.10.3"}, "python3.11"),
        ({"python3.12": "3.12.1", "python3.10": "3.10.3"}, "python3.12"),
        ({"python3.11": None, "python3.10": "3.10.3"}, "python3.10"),  # python3.11 is there but does not run
        ({"python3": "3.10.3"}, "python3"),
    ],
)
def test_choice_of_python(tmp_path: Path, installed: dict[str, str | None], chosen: str) -> None:
    for name, version in installed.items():
        answer = f'case "$2" in *version_info*) echo {version} ;; *) echo {name} ;; esac' if version else "exit 127"
        executable(tmp_path / "bin" / name, f"#!/bin/sh\n{answer}\n")
    done = run_setup(tmp_path, "--which")
    assert (done.returncode, done.stdout.strip()) == (0, chosen)


# Checks before anything is downloaded --------------------------------------------------------------------------------


def test_main_prints_one_sentence(bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    usage = namedtuple("usage", "total used free")(10**12, 10**12, 10**9)
    monkeypatch.setattr(bootstrap.shutil, "disk_usage", lambda path: usage)
    assert bootstrap.main([]) == 1
    error = capsys.readouterr().err
    assert error.startswith("raggedbev: about 6 GB of free disk space are needed in ")
    assert error.endswith(", but 1.0 GB are free.\n")
    assert not bootstrap.VENV.exists()


def test_no_venv_module(bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ensurepip" else find_spec(name))
    with pytest.raises(bootstrap.SetupError, match=r"has no ensurepip module .* apt install python3\.\d+-venv"):
        bootstrap.check_machine(bootstrap.stages())


def test_no_compiler(bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(bootstrap, "check_disk", lambda: None)
    with pytest.raises(bootstrap.SetupError, match=r"C\+\+ compiler 'c\+\+' was not found"):
        bootstrap.check_machine(bootstrap.stages())


def test_no_compiler_is_needed_when_mmcv_is_cached(
    bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(bootstrap, "check_disk", lambda: None)
    folder = bootstrap.wheel_cache() / f"{bootstrap.python_tag()}-torch2.13.0cpu"
    folder.mkdir(parents=True)
    (folder / "mmcv-2.1.0-cp3-linux.whl").touch()
    bootstrap.check_machine(bootstrap.stages())


def test_no_python_headers(bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    executable(tmp_path / "bin" / "c++", "")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(bootstrap.sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    with pytest.raises(bootstrap.SetupError, match=r"no C headers \(Python.h\)"):
        bootstrap.check_compiler()


# Failing commands ----------------------------------------------------------------------------------------------------


def test_no_network(bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real pip against a closed port."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setattr(bootstrap, "VENV_PYTHON", Path(sys.executable))
    with pytest.raises(bootstrap.SetupError, match="pip cannot reach a package index for something; connect"):
        arguments = ["--no-deps", "--target", str(bootstrap.ROOT), "raggedbev-no-such-package"]
        bootstrap.pip_install("test", "something", arguments, "test.log")


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("OSError: [Errno 28] No space left on device", "the disk became full while installing torch"),
        (
            "SSLError(1, '[SSL: CERTIFICATE_VERIFY_FAILED] ...')\nERROR: ResolutionImpossible",
            "pip does not trust the certificate of the package index that it asks for torch; set PIP_CERT",
        ),
        ("ERROR: something else", "installing torch failed: ERROR: something else"),
    ],
)
def test_failed_installation(bootstrap: ModuleType, output: str, message: str) -> None:
    fake_venv_python(bootstrap, f"print({output!r}); raise SystemExit(1)")
    with pytest.raises(bootstrap.SetupError, match=message.replace("[", r"\[")):
        bootstrap.install_torch("torch")


def test_failed_mmcv_build_names_the_log_and_leaves_nothing(bootstrap: ModuleType) -> None:
    fake_venv_python(bootstrap, "print('[3/77] c++ nms.cpp'); print('error: no such header'); raise SystemExit(1)")
    log = bootstrap.LOGS / "mmcv.log"
    with pytest.raises(bootstrap.SetupError, match=f"building mmcv==2.1.0 with its ops failed; .* {log}"):
        bootstrap.install_mmcv("mmcv")
    assert "no such header" in log.read_text()
    assert bootstrap.compiled_files(log) == ("compiled 3/77 files", 3 / 77)
    assert [path.name for path in bootstrap.wheel_cache().glob("*/*")] == [".lock"]


# Nothing twice -------------------------------------------------------------------------------------------------------

FAKE_BUILD = """
import os, pathlib, sys, time
assert os.environ["MMCV_WITH_OPS"] == "1"
with open({calls!r}, "a") as file:
    file.write("built\\n")
time.sleep(0.3)
folder = sys.argv[sys.argv.index("--wheel-dir") + 1]
pathlib.Path(folder, "mmcv-2.1.0-cp3-linux.whl").write_text("wheel")
"""


def test_titles_say_what_is_done(bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    build = "pathlib.Path(sys.argv[sys.argv.index('--wheel-dir') + 1], 'mmcv-2.1.0-x.whl').write_text('')"
    fake_venv_python(bootstrap, f"import pathlib, sys\nif 'wheel' in sys.argv:\n    {build}")
    for stage in bootstrap.stages()[2:4]:
        stage.action(f"[1/2] {stage.title}")
    titles = [line.removesuffix(" ...") for line in capsys.readouterr().out.splitlines() if line.endswith(" ...")]
    assert titles == [
        "[1/2] packages: tools and dependencies",
        "[1/2] packages: mmengine, mmdet and mmdet3d",
        "[1/2] mmcv: building it with CPU ops",
        "[1/2] mmcv: installing it",
    ]


def test_two_set_ups_build_mmcv_once(bootstrap: ModuleType, tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    fake_venv_python(bootstrap, FAKE_BUILD.format(calls=str(calls)))
    wheels: list[Path] = []
    threads = [threading.Thread(target=lambda: wheels.append(bootstrap.mmcv_wheel("mmcv"))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert calls.read_text() == "built\n"
    assert wheels[0] == wheels[1]
    assert wheels[0].parent.name == f"{bootstrap.python_tag()}-torch2.13.0cpu"
    assert wheels[0].read_text() == "wheel"


def test_cuda_torch_without_nvcc_takes_cpu_ops(
    bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(bootstrap, "torch_build", lambda: ("2.13.0+cu130", "13.0"))
    monkeypatch.setattr(bootstrap, "can_build_cuda_ops", lambda cuda: False)
    fake_venv_python(bootstrap, FAKE_BUILD.format(calls=str(tmp_path / "calls")))
    assert bootstrap.mmcv_wheel("mmcv").parent.name == f"{bootstrap.python_tag()}-torch2.13.0cu130-cpuops"


def test_stages_run_once_and_again_when_their_inputs_change(
    bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []

    def record(name: str):
        def action(title: str) -> None:
            fake_venv_python(bootstrap, "")
            ran.append(name)

        return action

    actions = {
        "venv": "make_venv",
        "torch": "install_torch",
        "packages": "install_packages",
        "mmcv": "install_mmcv",
        "raggedbev": "install_package",
    }
    for name, function in actions.items():
        monkeypatch.setattr(bootstrap, function, record(name))
    monkeypatch.setattr(bootstrap, "check_machine", lambda to_do: None)

    def set_up() -> list[str]:
        ran.clear()
        bootstrap.set_up()
        return list(ran)

    assert set_up() == list(actions)
    assert set_up() == []
    (bootstrap.ROOT / "csrc" / "new.cpp").write_text("int main() {}")
    assert set_up() == ["raggedbev"]
    (bootstrap.REQUIREMENTS / "dev.txt").write_text("ruff")
    assert set_up() == ["packages"]
    (bootstrap.REQUIREMENTS / "torch.txt").write_text("torch==2.14.0")
    assert set_up() == ["torch", "packages", "mmcv", "raggedbev"]
    bootstrap.VENV_PYTHON.unlink()
    assert set_up() == list(actions)
    assert set_up() == []


def test_failed_stage_runs_again(bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "check_machine", lambda to_do: None)
    monkeypatch.setattr(bootstrap, "make_venv", lambda title: fake_venv_python(bootstrap, "raise SystemExit(1)"))
    assert bootstrap.main([]) == 1
    assert [stage.name for stage in bootstrap.stages() if stage.is_done()] == ["venv"]
