"""Runner hooks: checkpoints that survive a kill, checkpoints of the right model, losses that leave the device together,
NaN predictions made visible.

In: the mmengine runner's events. Out: files in the work directory, errors and warnings in the log.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import all_reduce, is_main_process
from mmengine.hooks import CheckpointHook, Hook, LoggerHook, RuntimeInfoHook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapperDict
from mmengine.registry import HOOKS
from mmengine.runner import BaseLoop

__all__ = [
    "AtomicCheckpointHook",
    "CheckpointMatchHook",
    "DeferredRuntimeInfoHook",
    "NonFiniteWarningHook",
    "check_checkpoint",
]

_PARTIAL = ".partial"


@HOOKS.register_module()
class AtomicCheckpointHook(CheckpointHook):
    """mmengine's ``CheckpointHook``, made safe against a kill at any moment.

    The stock hook deletes the oldest checkpoint, then writes the next one in place. A process killed in between leaves
    a torn file, or none. This one writes beside the target, renames, moves the ``last_checkpoint`` pointer by another
    rename, and only then deletes. Checkpoints must be on a local file system; same arguments as the stock hook.
    """

    def before_train(self, runner) -> None:
        """Restore the list of kept checkpoints; remove what an earlier kill left half written."""
        super().before_train(runner)
        self._require_local()
        if is_main_process():
            for leftover in Path(self.out_dir).glob(f"*{_PARTIAL}"):
                leftover.unlink()

    def _require_local(self) -> None:
        from mmengine.fileio import LocalBackend

        if not isinstance(self.file_backend, LocalBackend):
            raise ValueError(
                f"AtomicCheckpointHook writes to local folders, got out_dir={self.out_dir!r}; use CheckpointHook"
            )

    def _save_checkpoint_with_step(self, runner, step: int, meta: dict) -> None:
        outdated = self._register_step(runner, step)
        name = self.filename_tmpl.format(step)
        self.last_ckpt = str(Path(self.out_dir) / name)
        runner.message_hub.update_info("last_ckpt", self.last_ckpt)
        runner.save_checkpoint(
            self.out_dir,
            name + _PARTIAL,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=self.by_epoch,
            backend_args=self.backend_args,
            **self.args,
        )
        if not is_main_process():
            return
        _replace_durably(self.last_ckpt + _PARTIAL, self.last_ckpt)
        pointer = Path(runner.work_dir) / "last_checkpoint"
        pointer.with_name(pointer.name + _PARTIAL).write_text(self.last_ckpt)
        _replace_durably(pointer.with_name(pointer.name + _PARTIAL), pointer)
        for old in outdated:
            with contextlib.suppress(FileNotFoundError):
                (Path(self.out_dir) / self.filename_tmpl.format(old)).unlink()

    def _register_step(self, runner, step: int) -> list[int]:
        """Note ``step`` as kept; return the steps whose files may go once the new file stands."""
        if self.max_keep_ckpts <= 0 or (self.keep_ckpt_ids and self.keep_ckpt_ids[-1] == step):
            return []
        outdated = []
        while len(self.keep_ckpt_ids) >= self.max_keep_ckpts:
            outdated.append(self.keep_ckpt_ids.popleft())
        self.keep_ckpt_ids.append(step)
        runner.message_hub.update_info("keep_ckpt_ids", list(self.keep_ckpt_ids))
        return outdated


def _replace_durably(source: str | Path, target: str | Path) -> None:
    with open(source, "rb") as file:
        os.fsync(file.fileno())
    os.replace(source, target)


@HOOKS.register_module()
class CheckpointMatchHook(Hook):
    """Refuses a checkpoint of another model in one sentence, before any weight is loaded.

    mmengine loads what fits and prints a page about the rest. When resuming or testing, every key has to match; when
    ``load_from`` starts a training, at least one key has to (fine-tuning, a pretrained backbone).
    """

    priority = "HIGHEST"

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Compare ``checkpoint`` with the runner's model.

        Raises:
            ValueError: The checkpoint belongs to another model.
        """
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        training = isinstance(runner._train_loop, BaseLoop)  # built before a checkpoint is loaded, in training
        fine_tuning = training and not runner._resume
        check_checkpoint(model.state_dict(), checkpoint.get("state_dict", checkpoint), partial=fine_tuning)


def check_checkpoint(expected: dict[str, torch.Tensor], found: dict[str, torch.Tensor], partial: bool = False) -> None:
    """Check that the weights ``found`` belong to a model with the weights ``expected``.

    Args:
        expected: State dict of the model.
        found: State dict of the checkpoint; a leading ``module.`` of its keys is ignored.
        partial: Accept a checkpoint that covers the model in part.

    Raises:
        ValueError: Keys are missing, unknown or of another shape; with ``partial``: not one key fits.
    """
    found = {key.removeprefix("module."): value for key, value in found.items()}
    missing = [key for key in expected if key not in found]
    unknown = [key for key in found if key not in expected]
    shapes = [
        f"{key} is {tuple(found[key].shape)} instead of {tuple(value.shape)}"
        for key, value in expected.items()
        if key in found and found[key].shape != value.shape
    ]
    if not (missing or unknown or shapes):
        return
    if partial and len(missing) + len(shapes) < len(expected):
        return
    kinds = {"are missing": missing, "are unknown": unknown, "have another shape": shapes}
    wrong = ", ".join(f"{len(names)} {what} ({names[0]})" for what, names in kinds.items() if names)
    raise ValueError(
        "the checkpoint is of another model: use the config that it was trained with; "
        f"of {len(expected)} weights {wrong}"
    )


@HOOKS.register_module()
class NonFiniteWarningHook(Hook):
    """Says once, and where, that a head has predicted NaN or infinity.

    Decoder and heads count such values on the device; what follows treats them as the published code does. This hook
    reads the counts of all ranks every ``interval`` iterations and at the end: a small transfer each, none in between.

    Args:
        interval: Iterations between two reads.
    """

    def __init__(self, interval: int = 50) -> None:
        if interval < 1:
            raise ValueError(f"interval must be at least 1, got {interval}")
        self.interval = interval
        self._warned: set[str] = set()

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Read the counters when the interval is over."""
        if self.every_n_train_iters(runner, self.interval):
            self._report(runner)

    def after_train(self, runner) -> None:
        """Read the counters a last time."""
        self._report(runner)

    def _report(self, runner) -> None:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        counters = {
            name: module.nonfinite_predictions
            for name, module in model.named_modules()
            if name not in self._warned and isinstance(getattr(module, "nonfinite_predictions", None), torch.Tensor)
        }
        for name, counter in counters.items():
            per_layer = counter.detach().clone().reshape(-1)
            all_reduce(per_layer)
            layers = [f"layer {i}: {int(n)}" for i, n in enumerate(per_layer.tolist()) if n]
            if not layers:
                continue
            self._warned.add(name)
            print_log(
                f"{name} ({type(model.get_submodule(name)).__name__}) predicted NaN or infinity by iteration "
                f"{runner.iter + 1} ({'; '.join(layers)} values so far). Training goes on as in the published code: 3D "
                "losses are made finite, 2D losses may be NaN. If it lasts, lower the learning rate or check the "
                "input. This is said once.",
                logger="current",
                level=logging.WARNING,
            )


@HOOKS.register_module()
class DeferredRuntimeInfoHook(RuntimeInfoHook):
    """mmengine's ``RuntimeInfoHook``, whose losses wait on the device until they are logged.

    The stock hook reads every loss of every step, and the optimiser wrapper the norm of clipped gradients: some thirty
    waits for the device in a step of a DETR-like detector. This one keeps a copy of them there, and reads all at once,
    in one transfer, when a ``LoggerHook`` is about to write, before a checkpoint and at the end. The logs are the same.

    ``default_hooks=dict(runtime_info=dict(type='DeferredRuntimeInfoHook'))`` switches it on.
    """

    def __init__(self) -> None:
        self._pending: list[tuple[list[str], torch.Tensor]] = []  # names and values that were kept together

    def before_train(self, runner) -> None:
        """Let gradients be clipped without a look at their norm."""
        super().before_train(runner)
        wrapper = runner.optim_wrapper
        for one in wrapper.values() if isinstance(wrapper, OptimWrapperDict) else [wrapper]:
            if getattr(one, "clip_grad_kwargs", None):
                one.clip_func = self._keeping_norm(one.clip_func, one.grad_name)

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs: dict | None = None) -> None:
        """Keep the losses; hand them on when they are about to be logged."""
        outputs = outputs or {}
        on_device = {key: value for key, value in outputs.items() if _is_number_on_device(value)}
        if on_device:
            self._keep(on_device)
        if len(on_device) < len(outputs):
            others = {key: value for key, value in outputs.items() if key not in on_device}
            super().after_train_iter(runner, batch_idx, data_batch, others)
        if self._is_logged_now(runner, batch_idx):
            self._hand_on(runner)

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        """Put what was pending into the checkpoint, too."""
        if self._pending:
            self._hand_on(runner)
            checkpoint["message_hub"] = runner.message_hub.state_dict()

    def after_train(self, runner) -> None:
        """Hand on the rest."""
        self._hand_on(runner)

    def _keeping_norm(self, clip: Callable[..., torch.Tensor | None], name: str) -> Callable[..., None]:
        """``clip``, which keeps its result instead of giving it to the wrapper, who would read it."""

        def clip_and_keep(*args: Any, **kwargs: Any) -> None:
            norm = clip(*args, **kwargs)
            if norm is not None:
                self._keep({name: norm})

        return clip_and_keep

    def _keep(self, numbers: dict[str, torch.Tensor]) -> None:
        values = torch.stack([value.detach().reshape(()).double() for value in numbers.values()])
        self._pending.append((list(numbers), values))

    def _is_logged_now(self, runner, batch_idx: int) -> bool:
        loggers = (hook for hook in runner.hooks if isinstance(hook, LoggerHook))
        return self.end_of_epoch(runner.train_dataloader, batch_idx) or any(
            self.every_n_inner_iters(batch_idx, logger.interval) for logger in loggers
        )

    def _hand_on(self, runner) -> None:
        if not self._pending:
            return
        numbers = iter(torch.cat([values for _, values in self._pending]).tolist())
        for names, _ in self._pending:
            for name in names:
                runner.message_hub.update_scalar(f"train/{name}", next(numbers))
        self._pending.clear()


def _is_number_on_device(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.numel() == 1
