"""Peak memory is exact: bytes of tensors that live at the same time."""

import os

import torch

from raggedbev.profiling.memory import peak_memory

MIB = 2**20


def block(mib, device):
    return torch.zeros(mib * MIB // 4, device=device)


def test_what_lives_at_the_same_time_is_added_up(device):
    def work():
        kept = block(3, device)
        for _ in range(4):
            passing = block(2, device)
        return kept, passing

    # Each new block is there before the last one goes.
    assert peak_memory(work, device) == (3 + 2 + 2) * MIB


def test_a_result_that_is_kept_counts_and_earlier_memory_does_not(device):
    before, results = block(5, device), []
    found = peak_memory(lambda: results.append(before[: MIB // 4].neg()), device)
    assert found == MIB
    assert peak_memory(lambda: before.sum(), device) < MIB / 2
    assert peak_memory(lambda: None, device) == 0


def test_gradients_count(device):
    x = block(1, device).requires_grad_()

    def work():
        (x * x).sum().backward()

    # The product, then the gradient of each factor, before one is added to the other.
    assert 2 * MIB <= peak_memory(work, device) <= 4 * MIB


def test_what_the_work_writes_to_the_terminal_stays(capfd):
    peak_memory(lambda: os.write(2, b"a line of the work\n"))
    assert capfd.readouterr().err == "a line of the work\n"
