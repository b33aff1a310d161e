"""Sets up .venv in stages and does nothing twice; started by scripts/setup.sh, which picks the interpreter.

    python scripts/bootstrap.py

In: requirements/, csrc/, setup.py, pyproject.toml and the interpreter that runs this file (standard library only).
Out: .venv with torch, the mm packages, mmcv's compiled ops and this package. A stamp per stage holds a hash of its
inputs; a stage runs when its stamp differs. Logs are in build/logs/. Every failure is one sentence and exit code 1.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import functools
import hashlib
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
VENV_PYTHON = VENV / "bin" / "python"
STAMPS = VENV / ".raggedbev"
REQUIREMENTS = ROOT / "requirements"
TOOLS = ("packages.txt", "dev.txt", "docs.txt")
LOGS = ROOT / "build" / "logs"
NEEDED_GB = 6
PLAIN_REPORT_SECONDS = 30


class SetupError(Exception):
    """Something that the user has to mend; the message is one sentence."""


# ---------------------------------------------------------------------------------------------------------------------
# Running commands with visible progress
# ---------------------------------------------------------------------------------------------------------------------


class ProgressLine:
    """One moving line on a terminal; a plain line now and then elsewhere."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.begin = self.reported = time.monotonic()
        self.moving = sys.stdout.isatty()
        if not self.moving:
            print(f"{title} ...", flush=True)

    def elapsed(self) -> str:
        seconds = int(time.monotonic() - self.begin)
        return f"{seconds // 60}:{seconds % 60:02d}"

    def update(self, detail: str, share: float = 0.0) -> None:
        """Shows how far the work is; `share` of it is done, 0 where nobody knows."""
        if share > 0:
            left = int((time.monotonic() - self.begin) * (1 - share) / share)
            detail = f"{detail}, about {left // 60}:{left % 60:02d} left"
        line = f"{self.title}  {self.elapsed()}  {detail}"
        if self.moving:
            columns = shutil.get_terminal_size().columns
            print(f"\r\033[K{line[: columns - 1]}", end="", flush=True)
        elif time.monotonic() - self.reported >= PLAIN_REPORT_SECONDS:
            self.reported = time.monotonic()
            print(line[:120], flush=True)

    def close(self, outcome: str) -> None:
        start = "\r\033[K" if self.moving else ""
        print(f"{start}{self.title}  {outcome} after {self.elapsed()}", flush=True)


def tail(log: Path, size: int = 4096) -> str:
    with log.open("rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - size))
        return file.read().decode(errors="replace")


Progress = Callable[[Path], tuple[str, float]]  # of a log: what to show, and the share that is done or 0


def last_line(log: Path) -> str:
    lines = [line.strip() for line in tail(log).splitlines() if line.strip()]
    return lines[-1] if lines else ""


def last_step(log: Path) -> tuple[str, float]:
    """The last thing that pip says."""
    return last_line(log), 0.0


def compiled_files(log: Path) -> tuple[str, float]:
    """What ninja says of a build: files done and to do."""
    counts = re.findall(r"\[(\d+)/(\d+)\]", tail(log, 65536))
    if not counts:
        return "preparing", 0.0
    done, total = map(int, counts[-1])
    return f"compiled {done}/{total} files", done / total


def clean_environment(**changes: str) -> dict[str, str]:
    """The environment for commands in .venv: nothing from outside it is on the path of its Python."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME", "PIP_TARGET")}
    kept["PATH"] = f"{VENV / 'bin'}{os.pathsep}{kept.get('PATH', '')}"
    return kept | {"PYTHONNOUSERSITE": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1"} | changes


def run(
    title: str,
    command: list[str],
    log: Path,
    *,
    progress: Progress = last_step,
    environment: dict[str, str] | None = None,
) -> bool:
    """Runs a command with its output in `log`; returns whether it succeeded."""
    log.parent.mkdir(parents=True, exist_ok=True)
    line = ProgressLine(title)
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            cwd=ROOT,
            env=environment or clean_environment(),
            start_new_session=True,
        )
        try:
            while process.poll() is None:
                line.update(*progress(log))
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0.3)
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            process.wait()
            line.close("interrupted")
            raise
    line.close("done" if process.returncode == 0 else "failed")
    return process.returncode == 0


NETWORK_SIGNS = (
    "from versions: none",
    "Failed to establish a new connection",
    "NewConnectionError",
    "ConnectTimeoutError",
    "Read timed out",
    "Temporary failure in name resolution",
    "Cannot connect to proxy",
    "No route to host",
    "Network is unreachable",
)


def failure(what: str, log: Path, otherwise: str) -> SetupError:
    """The sentence for a failed command: a cause that its log names, or else `otherwise`."""
    text = tail(log, 65536)
    if "No space left on device" in text:
        return SetupError(
            f"the disk became full while installing {what}; about {NEEDED_GB} GB are needed (log: {log})."
        )
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return SetupError(
            f"pip does not trust the certificate of the package index that it asks for {what}; set PIP_CERT to a file "
            f"with the certificates of your network (log: {log})."
        )
    if any(sign in text for sign in NETWORK_SIGNS):
        return SetupError(
            f"pip cannot reach a package index for {what}; connect this machine to the network, or set PIP_INDEX_URL "
            f"to an index that it can reach (log: {log})."
        )
    return SetupError(otherwise)


def pip_install(title: str, what: str, arguments: list[str], log_name: str, progress: Progress = last_step) -> None:
    log = LOGS / log_name
    constraints = REQUIREMENTS / "constraints.txt"
    command = [str(VENV_PYTHON), "-m", "pip", "install", "--progress-bar", "off", "-c", str(constraints), *arguments]
    if not run(title, command, log, progress=progress):
        raise failure(what, log, f"installing {what} failed: {last_line(log)} (log: {log}).")


# ---------------------------------------------------------------------------------------------------------------------
# Checks before anything is downloaded
# ---------------------------------------------------------------------------------------------------------------------


def check_python() -> None:
    if not (3, 10) <= sys.version_info[:2] <= (3, 12):
        version = ".".join(str(part) for part in sys.version_info[:3])
        raise SetupError(f"Python 3.10 to 3.12 is needed, but {sys.executable} is Python {version}.")


def check_venv_module() -> None:
    missing = [name for name in ("venv", "ensurepip") if importlib.util.find_spec(name) is None]
    if missing:
        package = f"python{sys.version_info[0]}.{sys.version_info[1]}-venv"
        raise SetupError(
            f"{sys.executable} has no {' and no '.join(missing)} module to make a virtual environment with; install it "
            f"(Debian and Ubuntu: apt install {package})."
        )


def check_disk() -> None:
    free = shutil.disk_usage(ROOT).free / 1e9
    if free < NEEDED_GB:
        raise SetupError(f"about {NEEDED_GB} GB of free disk space are needed in {ROOT}, but {free:.1f} GB are free.")


def check_compiler() -> None:
    compiler = os.environ.get("CXX", "c++").split()[0]
    if shutil.which(compiler) is None:
        raise SetupError(
            f"mmcv's ops must be compiled, but the C++ compiler {compiler!r} was not found; install one (Debian and "
            "Ubuntu: apt install g++) or set CXX."
        )
    if not Path(sysconfig.get_paths()["include"], "Python.h").exists():
        package = f"python{sys.version_info[0]}.{sys.version_info[1]}-dev"
        raise SetupError(
            f"mmcv's ops must be compiled, but {sys.executable} has no C headers (Python.h); install them (Debian and "
            f"Ubuntu: apt install {package})."
        )


def is_mmcv_cached() -> bool:
    """Whether the cache holds an mmcv wheel for this Python and, as far as known before torch is there, this torch."""
    torch_version = (REQUIREMENTS / "torch.txt").read_text().split("==")[1].strip()
    return any(wheel_cache().glob(f"{python_tag()}-torch{torch_version}*/{mmcv_pin().replace('==', '-')}-*.whl"))


# ---------------------------------------------------------------------------------------------------------------------
# mmcv: built once per Python and torch, shared by all checkouts of this user
# ---------------------------------------------------------------------------------------------------------------------


def python_tag() -> str:
    return f"cp{sys.version_info[0]}{sys.version_info[1]}"


def wheel_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "raggedbev" / "wheels"


def mmcv_pin() -> str:
    return next(line for line in (REQUIREMENTS / "mmcv.txt").read_text().split() if line.startswith("mmcv=="))


@functools.cache
def torch_build() -> tuple[str, str | None]:
    """Version of the installed torch, and of the CUDA tool kit it was built with."""
    script = "import json, torch; print(json.dumps([torch.__version__, torch.version.cuda]))"
    done = subprocess.run([VENV_PYTHON, "-c", script], capture_output=True, text=True, env=clean_environment())
    if done.returncode != 0:
        raise SetupError(f"the installed torch does not load: {done.stderr.strip().splitlines()[-1]}")
    version, cuda = json.loads(done.stdout.splitlines()[-1])
    return version, cuda


def can_build_cuda_ops(cuda: str | None) -> bool:
    """CUDA ops need a CUDA build of torch, nvcc of the same major version, and a device (or a list) to build for."""
    nvcc = Path(os.environ["CUDA_HOME"], "bin/nvcc") if "CUDA_HOME" in os.environ else shutil.which("nvcc")
    if cuda is None or nvcc is None or not Path(nvcc).exists():
        return False
    release = re.search(r"release (\d+)\.", subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout)
    if release is None or release[1] != cuda.split(".")[0]:
        return False
    if "TORCH_CUDA_ARCH_LIST" in os.environ:
        return True
    devices = shutil.which("nvidia-smi")
    return devices is not None and subprocess.run([devices, "-L"], capture_output=True).returncode == 0


@contextlib.contextmanager
def locked(path: Path, waiting_for: str) -> Iterator[None]:
    """Holds a lock file; it is free again when this process ends, however it ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for {waiting_for} ...", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def mmcv_build_environment(with_cuda: bool) -> dict[str, str]:
    memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    jobs = max(1, min(os.cpu_count() or 1, int(memory_gb / 2)))
    changes = {"MMCV_WITH_OPS": "1", "CFLAGS": "-g0 -O1 -w", "FORCE_CUDA": "1" if with_cuda else "0"}
    if not with_cuda:
        changes["CUDA_VISIBLE_DEVICES"] = ""
    return clean_environment(**changes, MAX_JOBS=os.environ.get("MAX_JOBS", str(jobs)))


def build_mmcv(title: str, folder: Path, with_cuda: bool) -> Path:
    """The mmcv wheel in `folder`, built if it is not there; appears there whole or not at all."""
    pattern = f"{mmcv_pin().replace('==', '-')}-*.whl"
    with locked(folder / ".lock", "another set-up that builds mmcv"):
        for wheel in folder.glob(pattern):
            return wheel
        log = LOGS / ("mmcv-cuda.log" if with_cuda else "mmcv.log")
        with tempfile.TemporaryDirectory(prefix=".build-", dir=folder) as target:
            # pip's own cache does not know the torch version, hence --no-cache-dir and --no-binary.
            command = [str(VENV_PYTHON), "-m", "pip", "wheel", "-v", "--no-build-isolation", "--no-deps"]
            command += ["--no-cache-dir", "--no-binary", "mmcv", "--wheel-dir", target, mmcv_pin()]
            if not run(title, command, log, progress=compiled_files, environment=mmcv_build_environment(with_cuda)):
                what = mmcv_pin()
                raise failure(what, log, f"building {what} with its ops failed; the compiler's messages are in {log}.")
            built = next(Path(target).glob(pattern))
            return built.replace(folder / built.name)


def mmcv_wheel(title: str) -> Path:
    """The mmcv wheel for this Python and torch, with CUDA ops where they can be built."""
    version, cuda = torch_build()
    folder = wheel_cache() / f"{python_tag()}-torch{version.replace('+', '')}"
    if cuda is None:
        return build_mmcv(f"{title}: building it with CPU ops", folder, with_cuda=False)
    if can_build_cuda_ops(cuda):
        try:
            return build_mmcv(f"{title}: building it with CUDA ops", folder, with_cuda=True)
        except SetupError as error:
            print(f"raggedbev: going on with mmcv's CPU ops: {error}", file=sys.stderr)
    return build_mmcv(f"{title}: building it with CPU ops", folder.with_name(f"{folder.name}-cpuops"), with_cuda=False)


# ---------------------------------------------------------------------------------------------------------------------
# Stages
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stage:
    """A step of the set-up; it runs when the hash of its inputs, and of the stages it needs, differs from its stamp."""

    name: str
    title: str
    action: Callable[[str], None]
    inputs: tuple[str, ...]
    files: tuple[Path, ...] = ()
    needs: tuple[Stage, ...] = ()

    def key(self) -> str:
        digest = hashlib.sha256("\0".join([*self.inputs, *(stage.key() for stage in self.needs)]).encode())
        for path in self.files:
            digest.update(f"{path.relative_to(ROOT)}".encode() + b"\0" + path.read_bytes())
        return digest.hexdigest()

    def is_done(self) -> bool:
        stamp = STAMPS / self.name
        return VENV_PYTHON.exists() and stamp.exists() and stamp.read_text() == self.key()


def make_venv(title: str) -> None:
    clear = ["--clear"] if VENV.exists() and not venv_has_this_version() else []
    log = LOGS / "venv.log"
    # The interpreter behind this one: .venv must not be made from itself.
    python = os.path.realpath(sys.executable) if sys.prefix != sys.base_prefix else sys.executable
    if not run(title, [python, "-m", "venv", *clear, str(VENV)], log):
        raise failure("a virtual environment", log, f"making {VENV} failed: {last_line(log)} (log: {log}).")


def venv_has_this_version() -> bool:
    version = f"import sys; raise SystemExit(sys.version_info[:3] != {sys.version_info[:3]})"
    return VENV_PYTHON.exists() and subprocess.run([VENV_PYTHON, "-c", version], capture_output=True).returncode == 0


def install_torch(title: str) -> None:
    pip_install(title, "torch", ["-r", str(REQUIREMENTS / "torch.txt")], "torch.log")


def install_packages(title: str) -> None:
    files = [argument for name in TOOLS for argument in ("-r", str(REQUIREMENTS / name))]
    pip_install(f"{title}: tools and dependencies", "the packages", files, "packages.log")
    pip_install(
        f"{title}: mmengine, mmdet and mmdet3d",
        "the mm packages",
        ["--no-deps", "-r", str(REQUIREMENTS / "mm.txt")],
        "mm.log",
    )


def install_mmcv(title: str) -> None:
    wheel = mmcv_wheel(title)
    pip_install(f"{title}: installing it", "mmcv", ["--no-deps", "--force-reinstall", str(wheel)], "mmcv-install.log")


def install_package(title: str) -> None:
    arguments = ["--no-deps", "--no-build-isolation", "-v", "-e", str(ROOT)]
    pip_install(title, "raggedbev", arguments, "raggedbev.log", progress=compiled_files)


def stages() -> list[Stage]:
    python = f"{sys.version_info[:3]}"
    names = (*TOOLS, "mm.txt", "constraints.txt")
    sources = [path for path in sorted((ROOT / "csrc").rglob("*")) if path.is_file()]
    build_options = [f"{name}={os.environ.get(name)}" for name in ("RAGGEDBEV_CUDA", "CXX", "CFLAGS", "CXXFLAGS")]
    venv = Stage("venv", "virtual environment", make_venv, (python,))
    torch = Stage("torch", "torch", install_torch, (), (REQUIREMENTS / "torch.txt",), (venv,))
    packages = tuple(REQUIREMENTS / name for name in names)
    others = Stage("packages", "packages", install_packages, (), packages, (torch,))
    mmcv = Stage("mmcv", "mmcv", install_mmcv, (mmcv_pin(),), (), (torch,))
    own_files = (ROOT / "setup.py", ROOT / "pyproject.toml", *sources)
    own = Stage("raggedbev", "raggedbev and its operators", install_package, tuple(build_options), own_files, (torch,))
    return [venv, torch, others, mmcv, own]


def check_machine(to_do: list[Stage]) -> None:
    names = {stage.name for stage in to_do}
    check_python()
    if "venv" in names:
        check_venv_module()
    if "torch" in names:
        check_disk()
    if "mmcv" in names and not is_mmcv_cached():
        check_compiler()


def set_up() -> None:
    """Runs every stage whose inputs changed since it last succeeded."""
    everything = stages()
    if all(stage.is_done() for stage in everything):
        return
    with locked(ROOT / "build" / "setup.lock", "another set-up of this checkout"):
        to_do = [stage for stage in everything if not stage.is_done()]
        check_machine(to_do)
        for number, stage in enumerate(to_do, 1):
            stage.action(f"[{number}/{len(to_do)}] {stage.title}")
            STAMPS.mkdir(parents=True, exist_ok=True)
            (STAMPS / stage.name).write_text(stage.key())


def main(arguments: list[str] | None = None) -> int:
    """Sets up; exit status 1 with one sentence on stderr, or 130 when interrupted."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args(
        arguments
    )
    try:
        set_up()
    except SetupError as error:
        print(f"raggedbev: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("raggedbev: set-up interrupted; the next call goes on from here.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
