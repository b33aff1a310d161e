"""Host-sync counts on the CPU: what would wait on CUDA is counted, what would not is not."""

import numpy as np
import pytest
import torch

from raggedbev.profiling import HostSyncCounter


def _tensor():
    return torch.arange(6.0).reshape(2, 3)


WAITING = {
    "item": lambda x: x.sum().item(),
    "bool": lambda x: bool(x.sum() > 0),
    "int": lambda x: int(x.sum()),
    "tolist": lambda x: x.tolist(),
    "cpu": lambda x: x.cpu(),
    "cpu then numpy": lambda x: x.cpu().numpy(),
    "numpy": lambda x: x.numpy(),
    "array": lambda x: np.asarray(x),
    "upload of an array": lambda x: torch.from_numpy(np.ones(2)).to(x.device),
    "upload of a list": lambda x: torch.tensor([1, 2]).to(x.device),
    "host work in between": lambda x: torch.nan_to_num(x.cpu()).numpy(),
    "to(cpu)": lambda x: x.to("cpu"),
    "nonzero": lambda x: x.nonzero(),
    "where": lambda x: torch.where(x > 2),
    "mask read": lambda x: x[x > 2],
    "mask write": lambda x: x.clone().index_put_((x > 2,), torch.ones(3)),
    "mask write by brackets": lambda x: x.clone().__setitem__(x > 2, x[:1].flatten()),
    "masked_select": lambda x: torch.masked_select(x, x > 2),
    "unique": lambda x: x.unique(),
    "equal": lambda x: torch.equal(x, x + 1),
    "inverse": lambda x: torch.linalg.inv(torch.eye(2)),
    "repeat_interleave": lambda x: x.repeat_interleave(torch.tensor([1, 2]), dim=0),
    "upload": lambda x: torch.tensor([1, 2], device="cpu"),
}
NOT_WAITING = {
    "arithmetic": lambda x: (x + 1).sum(),
    "fill by mask": lambda x: x.clone().__setitem__(x > 2, 0.0),
    "masked_fill": lambda x: x.masked_fill(x > 2, 0.0),
    "where with values": lambda x: torch.where(x > 2, x, 0.0),
    "integer indexing": lambda x: x[torch.tensor([0, 1])],
    "gather": lambda x: x.gather(1, torch.zeros(2, 1, dtype=torch.int64)),
    "known repeat": lambda x: x.repeat_interleave(torch.tensor([1, 2]), dim=0, output_size=3),
    "inverse without check": lambda x: torch.linalg.inv_ex(torch.eye(2)),
    "to(dtype)": lambda x: x.to(torch.float64),
    "to(device) on the device": lambda x: x.to(x.device),
    "host work": lambda x: (torch.from_numpy(np.ones(2)) + 1).to(torch.float32).numpy(),
    "to like": lambda x: x.to(x),
    "copy behind": lambda x: x.to("cpu", non_blocking=True),
}


@pytest.mark.parametrize("name", WAITING)
def test_waits_are_counted(name):
    x = _tensor()
    with HostSyncCounter("cpu") as syncs:
        WAITING[name](x)
    assert syncs.count == 1


@pytest.mark.parametrize("name", NOT_WAITING)
def test_work_on_the_device_is_not_counted(name):
    x = _tensor()
    with HostSyncCounter("cpu") as syncs:
        NOT_WAITING[name](x)
    assert syncs.by_kind == {}


def test_backward_of_mask_indexing_counts_too():
    leaf = _tensor().requires_grad_()
    with HostSyncCounter("cpu") as syncs:
        leaf[leaf > 2].sum().backward()
    assert syncs.by_kind["boolean-mask indexing"] == 2


def test_the_step_of_an_optimiser_is_left_out():
    weight = torch.ones(2, requires_grad=True)
    optimizer = torch.optim.AdamW([weight])
    weight.sum().backward()
    with HostSyncCounter("cpu") as syncs:
        optimizer.step()
        weight.sum().item()
    assert syncs.by_kind == {"_local_scalar_dense": 1}


def test_counts_end_with_the_block():
    x = _tensor()
    with HostSyncCounter("cpu") as syncs:
        x.sum().item()
    x.sum().item()
    assert syncs.count == 1
    assert "would wait" in syncs.method


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_counts_what_torch_reports():
    x = _tensor().cuda()
    with HostSyncCounter("cuda") as syncs:
        (x + 1).sum()
    assert syncs.count == 0
    with HostSyncCounter("cuda") as syncs:
        x.sum().item()
        x[x > 2]
    assert syncs.count == 2
    assert torch.cuda.get_sync_debug_mode() == 0


def test_compiled_functions_are_counted_as_they_are_written():
    compiled = torch.compile(lambda x: x.sum().item(), backend="eager")
    with HostSyncCounter("cpu") as syncs:
        assert compiled(torch.ones(3)) == 3.0
    assert syncs.count == 1
