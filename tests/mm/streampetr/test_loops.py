"""A resumed run goes on with the frame after the last one, without loading what came before."""

import numpy as np
import pytest
import torch
from mmdet3d.registry import DATASETS
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn

from raggedbev.mm.engine import allow_checkpoint_globals
from raggedbev.mm.streampetr import loops, samplers

LENGTHS = (3, 5, 2, 4, 6)


@DATASETS.register_module()
class StreamLoopFrames(torch.utils.data.Dataset):
    """Frame numbers with a random number each; counts what is loaded in this process."""

    metainfo = {"classes": ("car",)}  # noqa: RUF012
    loaded = 0

    def __init__(self):
        self.flag = np.repeat(np.arange(len(LENGTHS)), LENGTHS)

    def __len__(self):
        return len(self.flag)

    def __getitem__(self, index):
        StreamLoopFrames.loaded += 1
        return {"frame": index, "noise": np.random.rand()}


class Recorder(BaseModel):
    """Remembers what it was trained on."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.seen, self.noise = [], []

    def forward(self, frame, noise, mode):
        self.seen.append([int(number) for number in frame])
        self.noise.extend(float(number) for number in noise)
        return {"loss": (self.weight - 1) ** 2}


def train(work_dir, max_iters, resume=False, sampler=None, randomness=None, **loader):
    model = Recorder()
    StreamLoopFrames.loaded = 0
    stream = {"sampler": {"type": "StreamSampler"}, "batch_sampler": {"type": "StreamBatchSampler"}}
    allow_checkpoint_globals()
    runner = Runner(
        model=model,
        work_dir=str(work_dir),
        default_scope="mmdet3d",
        experiment_name=f"loop{np.random.default_rng().integers(1 << 60)}",
        train_dataloader={
            "dataset": {"type": "StreamLoopFrames"},
            "batch_size": 2,
            "num_workers": 0,
            **(sampler or stream),
            **loader,
        },
        train_cfg={"type": "StreamTrainLoop", "max_iters": max_iters},
        optim_wrapper={"optimizer": {"type": "SGD", "lr": 0.1}},
        default_hooks={
            "checkpoint": {"type": "CheckpointHook", "by_epoch": False, "interval": 1},
            "logger": {"type": "LoggerHook", "interval": 1000},
        },
        randomness={"seed": 5} if randomness is None else randomness,
        resume=resume,
        log_level="ERROR",
    )
    runner.train()
    return model


WORKERS = [
    {},
    {"num_workers": 2, "persistent_workers": False},
    {"num_workers": 2, "persistent_workers": True},
]


@pytest.mark.parametrize("loader", WORKERS)
def test_resume_continues_the_stream(tmp_path, loader):
    whole = train(tmp_path / "whole", 13, **loader)
    assert len(whole.seen) == 13
    first = train(tmp_path / "parts", 6, **loader)
    assert first.seen == whole.seen[:6]
    second = train(tmp_path / "parts", 13, resume=True, **loader)
    assert second.seen == whole.seen[6:]
    if not loader:
        assert StreamLoopFrames.loaded == 2 * 7
    else:  # workers do not draw the numbers of the first run's begin again
        assert not set(second.noise) & set(first.noise)


@pytest.mark.parametrize("randomness", [{"seed": None}, {"seed": 5, "diff_rank_seed": True}])
def test_resume_continues_a_stream_whose_seed_was_drawn(tmp_path, randomness):
    first = train(tmp_path, 6, randomness=randomness)
    stored = torch.load(tmp_path / "iter_6.pth", weights_only=True)["message_hub"]["runtime_info"]["stream_seed"]
    second = train(tmp_path, 13, resume=True, randomness=randomness)
    batches = iter(samplers.StreamBatchSampler(samplers.StreamSampler(StreamLoopFrames(), seed=stored), 2))
    assert first.seen + second.seen == [next(batches) for _ in range(13)]
    assert not set(second.noise) & set(first.noise)


def test_runs_repeat_by_seed(tmp_path):
    first, second = (train(tmp_path / name, 6, **WORKERS[2]) for name in "ab")
    assert first.seen == second.seen
    assert first.noise == second.noise
    assert len(set(first.noise)) == len(first.noise)  # workers and batches draw numbers of their own


def test_other_samplers_resume_as_in_mmengine(tmp_path):
    sampler = {"sampler": {"type": "InfiniteSampler", "shuffle": True}}
    whole = train(tmp_path / "whole", 5, sampler=sampler)
    train(tmp_path / "parts", 3, sampler=sampler)
    assert train(tmp_path / "parts", 5, resume=True, sampler=sampler).seen == whole.seen[3:]


def test_nothing_is_loaded_before_training(tmp_path):
    dataset = StreamLoopFrames()
    StreamLoopFrames.loaded = 0
    sampler = samplers.StreamBatchSampler(samplers.StreamSampler(dataset, seed=0), 2)
    loader = torch.utils.data.DataLoader(dataset, batch_sampler=sampler)

    class Visualizer:
        dataset_meta = None

    class Parts:
        visualizer = Visualizer()

    loop = loops.StreamTrainLoop(Parts(), loader, 3)
    assert StreamLoopFrames.loaded == 0
    assert loop.dataloader is loader and loop.max_iters == 3
    assert Parts.visualizer.dataset_meta == StreamLoopFrames.metainfo
