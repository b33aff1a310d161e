"""A data worker that dies: the sample that it was at is named, in any loop and behind any wrapper of the dataset."""

from __future__ import annotations

import gc
import os
import signal
import time

import pytest
import torch
from mmdet3d.registry import DATASETS
from mmengine.dataset import BaseDataset, ClassBalancedDataset, ConcatDataset
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.registry import METRICS
from torch.utils.data import DataLoader, Dataset, Subset

from raggedbev.mm.engine import ToolRunner
from raggedbev.mm.workers import WorkerNotes, name_dead_workers, note_items

# torch, interrupted by the signal of a death while it counts free file descriptors, leaves the files open.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True)
def left_files_are_closed():
    yield
    gc.collect()


def die() -> None:
    """As the kernel ends a process where memory runs out."""
    os.kill(os.getpid(), signal.SIGKILL)


@DATASETS.register_module()
class DeadlyFrames(Dataset):
    """Loading frame 5 kills the process."""

    metainfo = {"classes": ("car",)}  # noqa: RUF012

    def __init__(self, deadly: int | None = 5, name: str = "frame") -> None:
        self.deadly = deadly
        self.name = name

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict:
        if index == self.deadly:
            die()
        return {"inputs": torch.zeros(1)}

    def describe(self, index: int) -> str:
        return f"{self.name} {index}"


class Scans(BaseDataset):
    """Of mmengine, without names of its own; item 2 is given up for another one, which kills the process."""

    METAINFO = {"classes": ("car",)}  # noqa: RUF012

    def load_data_list(self) -> list[dict]:
        return [{"lidar_path": f"{index}.bin"} for index in range(4)]

    def get_cat_ids(self, idx: int) -> list[int]:
        return [0]

    def prepare_data(self, idx: int) -> dict | None:
        if idx == 3:
            die()
        return None if idx == 2 else {"inputs": torch.zeros(1)}

    def _rand_another(self) -> int:
        return 3


def noted(dataset, **loader) -> DataLoader:
    loader = DataLoader(dataset, **{"batch_size": 2, "num_workers": 1, "collate_fn": list, **loader})
    note_items(loader)
    return loader


@pytest.mark.parametrize("workers", [1, 2])
def test_dead_worker(workers):
    message = r"process \d+\) while it was loading frame 5: .*crashed on that file.*--resume"
    with pytest.raises(ChildProcessError, match=message) as caught, name_dead_workers():
        list(noted(DeadlyFrames(), num_workers=workers))
    assert isinstance(caught.value.__cause__, RuntimeError)
    with name_dead_workers():
        assert len(list(noted(DeadlyFrames(deadly=None), num_workers=workers))) == 4


WRAPPED = {
    "torch's subset": (lambda: Subset(DeadlyFrames(), [0, 5]), "frame 5"),
    "two datasets": (lambda: torch.utils.data.ConcatDataset([DeadlyFrames(None), DeadlyFrames(1, "other")]), "other 1"),
    "scans twice": (lambda: ConcatDataset([Scans(), Scans()]), r"sample 3 of Scans \(sample_idx 3"),
    "scans": (lambda: Scans(), r"sample 3 of Scans \(sample_idx 3, lidar_path 3.bin\)"),
    "balanced": (lambda: ClassBalancedDataset(Scans(), 1e-3), r"sample 3 of Scans \(sample_idx 3"),
}


@pytest.mark.parametrize(("make", "name"), WRAPPED.values(), ids=WRAPPED)
def test_items_of_wrapped_datasets_are_named(make, name):
    with pytest.raises(ChildProcessError, match=f"while it was loading {name}"), name_dead_workers():
        list(noted(make()))


def test_idle_worker_is_not_blamed_on_what_it_loaded():
    loader = noted(DeadlyFrames(None), persistent_workers=True)
    with pytest.raises(ChildProcessError, match=r"between two samples: .*memory; fewer"), name_dead_workers():
        list(loader)
        os.kill(loader._iterator._workers[0].pid, signal.SIGKILL)
        time.sleep(30)  # until the signal


def test_seeds_of_workers_stay():
    started = []
    loader = DataLoader(DeadlyFrames(), num_workers=1, worker_init_fn=started.append)
    note_items(loader)
    note_items(loader)  # has no effect
    assert loader.worker_init_fn.init == started.append


def test_death_within_code_that_makes_another_error_of_it():
    """torch raises from a signal handler, at any point of the main process."""

    def dump_config() -> None:
        try:
            loader = iter(noted(DeadlyFrames(0)))
            time.sleep(30)
            next(loader)
        except Exception as error:
            raise SyntaxError("Failed to format the config file") from error

    def clean_up() -> None:
        try:
            dump_config()
        except SyntaxError:
            raise KeyError("file") from None

    for code in (dump_config, clean_up):
        with pytest.raises(ChildProcessError, match="while it was loading frame 0"), name_dead_workers():
            code()


def test_other_errors_stay():
    with pytest.raises(RuntimeError, match=r"^out of luck$"), name_dead_workers():
        raise RuntimeError("out of luck")
    message = "DataLoader worker (pid(s) 1, 2) exited unexpectedly"  # of a loader that takes no notes
    with pytest.raises(RuntimeError, match="exited unexpectedly"), name_dead_workers():
        raise RuntimeError(message)
    with pytest.raises(ChildProcessError, match=r"^named already$"), name_dead_workers(), name_dead_workers():
        raise ChildProcessError("named already")


def test_notes():
    notes = WorkerNotes(2, DeadlyFrames())
    notes.take(1, 0, 7)
    assert notes.of(os.getpid()) == (0, 7) and notes.of(-5) is None
    notes.take(1)
    assert notes.of(os.getpid()) == (-1, -1)


# -- runs --------------------------------------------------------------------------------------------------------------


class Model(BaseModel):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def forward(self, inputs, mode):
        return {"loss": self.weight**2} if mode == "loss" else list(inputs)


@METRICS.register_module()
class Nothing(BaseMetric):
    def process(self, data_batch, data_samples) -> None:
        self.results.append(0)

    def compute_metrics(self, results) -> dict:
        return {}


def make_runner(tmp_path, train_loop: dict, deadly: dict) -> ToolRunner:
    def loader(name: str) -> dict:
        return {
            "dataset": {"type": "DeadlyFrames", "deadly": deadly.get(name), "name": f"{name} frame"},
            "sampler": {"type": "DefaultSampler", "shuffle": False},
            "batch_size": 2,
            "num_workers": 1,
        }

    return ToolRunner(
        model=Model(),
        work_dir=str(tmp_path),
        default_scope="mmdet3d",
        experiment_name=f"workers{time.monotonic_ns()}",
        train_dataloader=loader("train"),
        val_dataloader=loader("val"),
        test_dataloader=loader("test"),
        train_cfg=train_loop,
        val_cfg={"type": "ValLoop"},
        test_cfg={"type": "TestLoop"},
        val_evaluator={"type": "Nothing"},
        test_evaluator={"type": "Nothing"},
        optim_wrapper={"optimizer": {"type": "SGD", "lr": 0.1}},
        default_hooks={"logger": {"type": "LoggerHook", "interval": 1000}, "checkpoint": None},
        log_level="ERROR",
    )


LOOPS = [
    {"type": "EpochBasedTrainLoop", "max_epochs": 1},
    {"type": "IterBasedTrainLoop", "max_iters": 4, "val_interval": 4},
    {"type": "StreamTrainLoop", "max_iters": 4, "val_interval": 4},
]


@pytest.mark.parametrize("name", ["train", "val", "test"])
@pytest.mark.parametrize("loop", LOOPS, ids=lambda loop: loop["type"])
def test_every_loop_names_the_sample(tmp_path, loop, name):
    import raggedbev.mm.streampetr  # noqa: F401

    runner = make_runner(tmp_path, loop, {name: 5})
    with pytest.raises(ChildProcessError, match=f"while it was loading {name} frame 5"):
        runner.test() if name == "test" else runner.train()


def test_memory_is_pinned_where_there_is_cuda_and_the_config_does_not_say(monkeypatch):
    config = {"dataset": DeadlyFrames(), "sampler": torch.utils.data.SequentialSampler(range(8)), "batch_size": 1}
    assert ToolRunner.build_dataloader(config).pin_memory == torch.cuda.is_available()
    for available in (True, False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda available=available: available)
        assert ToolRunner.build_dataloader(config).pin_memory == available
        assert ToolRunner.build_dataloader({**config, "pin_memory": not available}).pin_memory != available
    assert "pin_memory" not in config
