"""The training loop over streams.

In: a dataloader, usually of `StreamBatchSampler`. Out: training by iterations as mmengine's, except that a resumed run
continues the data stream where the checkpoint left it by moving the sampler on, not by loading the data again.
"""

import functools
from collections.abc import Iterator

import torch
from mmdet3d.registry import LOOPS
from mmengine.runner import IterBasedTrainLoop, set_random_seed
from mmengine.runner.loops import _InfiniteDataloaderIterator
from torch.utils.data import DataLoader

from raggedbev.mm.workers import NotingStart, name_dead_workers, note_items

STREAM_SEED = "stream_seed"  # in the message hub, which checkpoints hold


class _UnstartedLoader:
    """Stands in for a dataloader while the base class is set up, which would start the workers too early."""

    def __init__(self, dataloader: DataLoader) -> None:
        self.dataset = dataloader.dataset

    def __iter__(self) -> Iterator:
        return iter(())


@LOOPS.register_module()
class StreamTrainLoop(IterBasedTrainLoop):
    """`IterBasedTrainLoop` that resumes the data stream at once.

    The dataloader is started when training starts, after a checkpoint has been loaded. If its batch sampler has
    `fast_forward`, that is called with the iterations done. The seed of the stream is kept in checkpoints, so that a
    run whose config names none goes on with the same stream, too. This process and the workers then start from seeds
    of their own, so that augmentations and noise do not repeat those of the first iterations. Other samplers are
    advanced as mmengine does it.

    Args:
        runner: the runner.
        dataloader: dataloader or its config.
        max_iters: iterations to train.
        kwargs: `val_begin`, `val_interval`, `dynamic_intervals` of `IterBasedTrainLoop`.
    """

    def __init__(self, runner, dataloader: DataLoader | dict, max_iters: int, **kwargs) -> None:
        if isinstance(dataloader, dict):
            different_seeds = runner._randomness_cfg.get("diff_rank_seed", False)
            dataloader = runner.build_dataloader(dataloader, seed=runner.seed, diff_rank_seed=different_seeds)
        super().__init__(runner, _UnstartedLoader(dataloader), max_iters, **kwargs)
        self.dataloader = dataloader
        note_items(dataloader)

    def run(self) -> torch.nn.Module:
        """Train from the current iteration to `max_iters`; returns the model.

        Raises:
            ChildProcessError: a worker of a dataloader died, in validation too; the frame that it was at is named.
        """
        if self.runner.val_loop is not None:
            note_items(self.runner.val_loop.dataloader)
        with name_dead_workers():
            return self._train()

    def _train(self) -> torch.nn.Module:
        self.runner.call_hook("before_train")
        self.runner.call_hook("before_train_epoch")
        self.dataloader_iterator = self._start_data()
        while self._iter < self._max_iters and not self.stop_training:
            self.runner.model.train()
            self.run_iter(next(self.dataloader_iterator))
            self._decide_current_val_interval()
            if self._validation_is_due():
                self.runner.val_loop.run()
        self._stop_data()
        self.runner.call_hook("after_train_epoch")
        self.runner.call_hook("after_train")
        return self.runner.model

    def _validation_is_due(self) -> bool:
        if self.runner.val_loop is None or self._iter < self.val_begin:
            return False
        return self._iter % self.val_interval == 0 or self._iter == self._max_iters

    def _start_data(self) -> Iterator:
        """Start the dataloader behind the batches that were trained on already."""
        batch_sampler = self.dataloader.batch_sampler
        if hasattr(batch_sampler, "fast_forward"):
            self._keep_stream_seed(batch_sampler.sampler)
            batch_sampler.fast_forward(self._iter)
            if self._iter:
                self._seed_main_process()
                self._seed_workers()
            return _InfiniteDataloaderIterator(self.dataloader)
        iterator = _InfiniteDataloaderIterator(self.dataloader)
        for _ in range(self._iter):
            next(iterator)
        return iterator

    def _stop_data(self) -> None:
        """End the workers; an endless dataloader never does so by itself, and the garbage collector takes seconds."""
        self.dataloader_iterator = None
        self.dataloader._iterator = None  # where persistent workers are kept

    def _keep_stream_seed(self, sampler) -> None:
        """Store the seed of a new stream with the run; take up the stored one when the run is resumed."""
        hub = self.runner.message_hub
        if self._iter:
            sampler.seed = hub.get_info(STREAM_SEED, sampler.seed)
        hub.update_info(STREAM_SEED, sampler.seed)

    def _seed_main_process(self) -> None:
        """Seed this process by the iteration: denoising noise, dropout, GridMask, and all data without workers."""
        different = self.runner._randomness_cfg.get("diff_rank_seed", False)
        set_random_seed((self.runner.seed + self._iter) % 2**31, diff_rank_seed=different)

    def _seed_workers(self) -> None:
        """Seed workers by the iteration, too, if the runner seeds them."""
        start = self.dataloader.worker_init_fn
        init = start.init if isinstance(start, NotingStart) else None
        if isinstance(init, functools.partial) and isinstance(init.keywords.get("seed"), int):
            seed = (init.keywords["seed"] + self._iter) % 2**31
            start.init = functools.partial(init.func, *init.args, **{**init.keywords, "seed": seed})
