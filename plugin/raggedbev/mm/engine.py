"""What `tools/train.py` and `tools/test.py` share: command line, config, runner, distribution, checkpoints, errors.

In: command-line arguments. Out: an mmengine ``Config`` that is ready for ``ToolRunner.from_cfg``.
"""

from __future__ import annotations

import argparse
import collections
import os
import pickle
import re
import sys
import traceback
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed
from mmengine.config import Config, DictAction
from mmengine.logging import HistoryBuffer
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from raggedbev.mm.failures import expected_failure
from raggedbev.mm.workers import name_dead_workers, note_items

__all__ = [
    "ToolRunner",
    "add_common_arguments",
    "allow_checkpoint_globals",
    "load_config",
    "require_checkpoint",
    "run_as_command",
]


def _history_method(owner: type, name: str) -> Callable:
    """What a checkpoint may ask of ``getattr``: a statistics method of mmengine's history buffer, nothing else."""
    if owner is not HistoryBuffer or name not in ("min", "max", "current", "mean"):
        raise ValueError(f"a checkpoint may not load the attribute {name!r} of {owner!r}")
    return getattr(owner, name)


def allow_checkpoint_globals() -> None:
    """Let ``torch.load(weights_only=True)`` read what mmengine stores beside the weights.

    A checkpoint of mmengine holds its message hub: ``HistoryBuffer`` objects with NumPy arrays, whose pickles name
    four methods through ``getattr``. Just these are added to torch's allow-list, ``getattr`` only in a form that knows
    the four methods; the check itself stays on.
    """
    multiarray = np.core.multiarray
    dtypes = {type(np.dtype(name)) for name in ("float64", "float32", "int64", "int32", "bool")}
    torch.serialization.add_safe_globals(
        [
            HistoryBuffer,
            collections.defaultdict,
            collections.deque,
            dict,
            np.ndarray,
            np.dtype,
            multiarray._reconstruct,
            multiarray.scalar,
            *dtypes,
            (_history_method, "builtins.getattr"),
        ]
    )


class ToolRunner(Runner):
    """mmengine's runner; where a data worker dies, its error names the sample, and loaders pin memory for CUDA.

    Both hold for training, validation and test in any loop. A `pin_memory` of the config is kept.
    """

    @staticmethod
    def build_dataloader(dataloader: DataLoader | dict, *args: Any, **kwargs: Any) -> DataLoader:
        """Build a dataloader as mmengine does.

        Args:
            dataloader: or its config.
            args: further arguments of mmengine's method.
            kwargs: the same by name.
        """
        if isinstance(dataloader, dict):
            dataloader = {"pin_memory": torch.cuda.is_available(), **dataloader}
        loader = Runner.build_dataloader(dataloader, *args, **kwargs)
        note_items(loader)
        return loader

    def train(self) -> torch.nn.Module:
        """Train; returns the model."""
        with name_dead_workers():
            return super().train()

    def val(self) -> dict:
        """Validate; returns the metrics."""
        with name_dead_workers():
            return super().val()

    def test(self) -> dict:
        """Test; returns the metrics."""
        with name_dead_workers():
            return super().test()


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that training and testing share; names and meaning as in mmdet3d's tools."""
    parser.add_argument("--work-dir", help="folder for logs, checkpoints and results (default: work_dirs/CONFIG_NAME)")
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=DictAction,
        help="settings that override the config, as key=value; nested keys are joined by dots, lists are written "
        'key="[a,b]"',
    )
    parser.add_argument("--ceph", action="store_true", help="read data from Ceph (mmdet3d's petrel backend)")
    parser.add_argument("--launcher", choices=["none", "pytorch", "slurm", "mpi"], default="none", help="job launcher")
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0, help="set by some launchers")


def load_config(args: argparse.Namespace) -> Config:
    """Read the config of a command line and prepare it for this machine.

    Args:
        args: Parsed arguments with ``config`` and those of :func:`add_common_arguments`.

    Returns:
        The config, with ``launcher`` and ``work_dir`` set; on a machine without CUDA, a distributed run uses gloo.

    Raises:
        FileNotFoundError: The config file does not exist.
    """
    if not Path(args.config).is_file():
        raise FileNotFoundError(f"no config file {args.config}; the configs are in configs/")
    os.environ.setdefault("LOCAL_RANK", str(args.local_rank))
    config = Config.fromfile(args.config)
    if args.ceph:
        from mmdet3d.utils import replace_ceph_backend

        config = replace_ceph_backend(config)
    config.launcher = args.launcher
    if args.cfg_options is not None:
        config.merge_from_dict(args.cfg_options)
    _warn_without_imports(config)
    if args.work_dir is not None:
        config.work_dir = args.work_dir
    elif config.get("work_dir") is None:
        config.work_dir = str(Path("work_dirs") / Path(args.config).stem)
    if args.launcher != "none" and not torch.cuda.is_available():
        _distribute_on_cpu(config, args.launcher)
    allow_checkpoint_globals()
    return config


def _warn_without_imports(config: Config) -> None:
    """Say that a config names swap-ins but does not import them, which other tools need it to do."""
    imports = config.get("custom_imports") or {}
    names = imports.get("imports", []) if isinstance(imports, dict) else imports
    swapped = next(_swap_ins(config.to_dict()), None)
    if swapped is None or "raggedbev" in str(names) or int(os.environ.get("RANK", 0)) > 0:
        return
    print(
        f"warning: the config uses {swapped} without custom_imports of raggedbev.mm; it works here because this tool "
        "imports that, elsewhere the config needs custom_imports = dict(imports=['raggedbev.mm'])",
        file=sys.stderr,
    )


def _swap_ins(config: Any) -> Iterator[str]:
    """Types of a config that importing `raggedbev.mm` registers."""
    if isinstance(config, dict):
        name = str(config.get("type", "")).rpartition(".")[2]
        if name.startswith(("Batched", "PerSample")):
            yield name
    for value in config.values() if isinstance(config, dict) else config if isinstance(config, list | tuple) else ():
        yield from _swap_ins(value)


def _distribute_on_cpu(config: Config, launcher: str) -> None:
    """mmengine's own start-up asks for a CUDA device; on CPUs the process group is made here."""
    if launcher != "pytorch":
        raise ValueError(f"without CUDA only --launcher pytorch is supported, got {launcher}")
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo")
    defaults = {
        "type": "MMDistributedDataParallel",
        "find_unused_parameters": config.get("find_unused_parameters", False),
        "broadcast_buffers": False,
    }
    config.model_wrapper_cfg = {**defaults, **config.get("model_wrapper_cfg", {}), "device_ids": None}


def require_checkpoint(path: str) -> None:
    """Check that a checkpoint file is there and whole, before a model is built for it.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It cannot be read as a checkpoint, or holds objects that the allow-list does not name.
    """
    if "://" in path:
        return
    if not Path(path).is_file():
        raise FileNotFoundError(f"no checkpoint file {path}")
    allow_checkpoint_globals()
    try:
        torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        refused = re.search(r"GLOBAL (\S+) was not an allowed global|Unsupported class (\S+)", str(error))
        reason = (
            f"it holds {refused[1] or refused[2]}, not weights alone" if refused else "it is torn or of another kind"
        )
        raise ValueError(f"{path} cannot be read as a checkpoint; {reason}") from error


def run_as_command(main: Callable[[], None]) -> None:
    """Run ``main``; show an expected failure as one sentence and exit status 1, not as a page of traceback.

    :func:`raggedbev.mm.failures.expected_failure` says what is expected. ``RAGGEDBEV_DEBUG=1`` shows the traceback of
    these too; errors of other kinds always show theirs.
    """
    try:
        main()
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.barrier()  # ranks leave together; one that left early would break the others' connections
    except (ValueError, OSError, KeyError, TypeError) as error:
        sentence = expected_failure(error)
        if sentence is None or os.environ.get("RAGGEDBEV_DEBUG") == "1":
            raise
        frame = traceback.extract_tb(error.__traceback__)[-1]
        print(f"\nerror: {sentence}", file=sys.stderr)  # mmengine has printed its hooks just before
        print(f"({Path(frame.filename).name}:{frame.lineno}; RAGGEDBEV_DEBUG=1 shows the traceback)", file=sys.stderr)
        raise SystemExit(1) from None
    finally:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
