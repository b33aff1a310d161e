"""Host-sync counts on the CPU: what would wait on CUDA is counted, what would not is not."""

import numpy as np
import pytest
import torch

from raggedbev.profiling import HostSyncCounter

X = torch.arange(6.0).reshape(2, 3)
MASK = X > 2

WAITING = {
    "item": lambda: X.sum().item(),
    "bool": lambda: bool(X.sum() > 0),
    "int": lambda: int(X.sum()),
    "tolist": lambda: X.tolist(),
    "cpu": lambda: X.cpu(),
    "cpu then numpy": lambda: X.cpu().numpy(),
    "numpy": lambda: X.numpy(),
    "array": lambda: np.asarray(X),
    "to(cpu)": lambda: X.to("cpu"),
    "nonzero": lambda: X.nonzero(),
    "where": lambda: torch.where(MASK),
    "mask read": lambda: X[MASK],
    "mask write": lambda: X.clone().index_put_((MASK,), torch.ones(3)),
    "mask write by brackets": lambda: X.clone().__setitem__(MASK, X[:1].flatten()),
    "masked_select": lambda: torch.masked_select(X, MASK),
    "unique": lambda: X.unique(),
    "equal": lambda: torch.equal(X, X + 1),
    "inverse": lambda: torch.linalg.inv(torch.eye(2)),
    "repeat_interleave": lambda: X.repeat_interleave(torch.tensor([1, 2]), dim=0),
    "upload": lambda: torch.tensor([1, 2], device="cpu"),
}
NOT_WAITING = {
    "arithmetic": lambda: (X + 1).sum(),
    "fill by mask": lambda: X.clone().__setitem__(MASK, 0.0),
    "masked_fill": lambda: X.masked_fill(MASK, 0.0),
    "where with values": lambda: torch.where(MASK, X, 0.0),
    "integer indexing": lambda: X[torch.tensor([0, 1])],
    "gather": lambda: X.gather(1, torch.zeros(2, 1, dtype=torch.int64)),
    "known repeat": lambda: X.repeat_interleave(torch.tensor([1, 2]), dim=0, output_size=3),
    "inverse without check": lambda: torch.linalg.inv_ex(torch.eye(2)),
    "to(dtype)": lambda: X.to(torch.float64),
    "to like": lambda: X.to(X),
    "copy behind": lambda: X.to("cpu", non_blocking=True),
}


@pytest.mark.parametrize("name", WAITING)
def test_waits_are_counted(name):
    with HostSyncCounter("cpu") as syncs:
        WAITING[name]()
    assert syncs.count == 1


@pytest.mark.parametrize("name", NOT_WAITING)
def test_work_on_the_device_is_not_counted(name):
    with HostSyncCounter("cpu") as syncs:
        NOT_WAITING[name]()
    assert syncs.by_kind == {}


def test_backward_of_mask_indexing_counts_too():
    leaf = X.clone().requires_grad_()
    with HostSyncCounter("cpu") as syncs:
        leaf[MASK].sum().backward()
    assert syncs.by_kind["boolean-mask indexing"] == 2


def test_counts_end_with_the_block():
    with HostSyncCounter("cpu") as syncs:
        X.sum().item()
    X.sum().item()
    assert syncs.count == 1
    assert "would wait" in syncs.method


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_counts_what_torch_reports():
    x = X.cuda()
    with HostSyncCounter("cuda") as syncs:
        (x + 1).sum()
    assert syncs.count == 0
    with HostSyncCounter("cuda") as syncs:
        x.sum().item()
        x[x > 2]
    assert syncs.count == 2
    assert torch.cuda.get_sync_debug_mode() == 0
