"""Chains of operations in threads of their own: the same results, numbers of threads left alone, errors passed on."""

import threading
from functools import partial

import pytest
import torch
from diffattn.kernels.backends.rows import attend_rows
from diffattn.kernels.backends.torch.head_groups import attend_by_head_groups
from diffattn.kernels.backends.torch.threads import MAX_WORKERS, in_threads, share_of_threads
from diffattn.kernels.backends.torch.tiles import forward
from diffattn.kernels.backends.torch.worklist import Sizes
from triton_plans import inputs, padded_order, random_plan

from diffattn import attend

MANY_CHUNKS = partial(forward, sizes=Sizes(chunk=1 << 14))


@pytest.fixture(params=[1, 2, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_every_worker_has_its_share_and_nobody_else_loses_theirs(threads):
    workers, each = share_of_threads(torch.device("cpu"))
    assert workers == threads and each == 1
    seen, grads, together = {}, [], threading.Barrier(workers)

    def run(index):
        together.wait(10)  # all at once, or never
        seen[index] = torch.get_num_threads()
        grads.append(torch.is_grad_enabled())

    with torch.no_grad():
        in_threads(run, workers, each, True)
    assert seen == dict.fromkeys(range(workers), 1) and not any(grads)
    later = []
    other = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    other.start()
    other.join()
    assert torch.get_num_threads() == threads and later == [threads]


def test_many_threads_are_shared_by_few_workers():
    before = torch.get_num_threads()
    torch.set_num_threads(2 * MAX_WORKERS)
    try:
        assert share_of_threads(torch.device("cpu")) == (MAX_WORKERS, 2)
        assert share_of_threads(torch.device("meta")) == (1, 1)
    finally:
        torch.set_num_threads(before)


def test_little_work_stays_in_the_thread_that_asks():
    before, seen = torch.get_num_threads(), []
    torch.set_num_threads(2)
    try:
        in_threads(
            lambda index: seen.append((index, threading.current_thread(), torch.get_num_threads())), 2, 1, False
        )
    finally:
        torch.set_num_threads(before)
    assert seen == [(0, threading.current_thread(), 2), (1, threading.current_thread(), 2)]


def test_an_error_in_a_worker_is_raised():
    def run(index):
        if index == 1:
            raise ValueError("worker 1")

    with pytest.raises(ValueError, match="worker 1"):
        in_threads(run, 2, 1, True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_results_do_not_depend_on_the_threads(threads, dtype):
    """Out, lse and all gradients, and twice the same."""
    plan = random_plan(300, 32, [(1, 16), (4, 4)], (2, 4), 0.4, order=padded_order(300, 64))
    tensors = inputs(plan, batch=2, heads=4, kv_heads=2, dtype=dtype)
    alone, again, here = (_all_of(plan, tensors, number) for number in (1, threads, threads))
    for name, one, two, three in zip(("out", "lse", "dq", "dk", "dv"), alone, again, here):
        assert torch.equal(two, three), name
        assert torch.equal(one, two), name


@pytest.mark.parametrize("heads", [(6, 6), (6, 3), (1, 1)])
def test_heads_of_which_every_thread_takes_some(threads, heads):
    """Their number is or is not a multiple of that of the threads; each head has lists of its own."""
    plan = random_plan(300, 32, [(1, 16), (4, 4)], (2, heads[0]), 0.4, order=padded_order(300, 64))
    tensors = inputs(plan, batch=2, heads=heads[0], kv_heads=heads[1])
    whole = attend(*tensors, plan, impl="torch", return_lse=True)
    for _ in range(2):
        parts = attend_by_head_groups(partial(attend_rows, forward), *tensors, plan, 32**-0.5, group_bytes=1)
        assert all(torch.equal(one, two) for one, two in zip(parts, whole, strict=True))


def test_a_worker_has_no_workers(threads):
    seen = []
    in_threads(lambda _: seen.append(share_of_threads(torch.device("cpu"))), threads, 1, True)
    assert threads == 1 or seen == [(1, 1)] * threads


def _all_of(plan, tensors, threads):
    torch.set_num_threads(threads)
    plan = plan.with_key_mask(torch.ones(2, plan.tokens, dtype=torch.bool))  # with nothing kept from the last time
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    out, lse = attend_rows(MANY_CHUNKS, *leaves, plan, leaves[0].shape[-1] ** -0.5)
    return [out, lse, *torch.autograd.grad((out.float().square().sum() + lse.sum()), leaves)]


def test_workers_may_write_what_inference_mode_made(threads):
    plan = random_plan(300, 32, [(1, 16)], (2, 4), 0.4, order=padded_order(300, 64))
    tensors = inputs(plan, batch=2, heads=4)
    with torch.inference_mode():
        out, _ = attend_rows(MANY_CHUNKS, *tensors, plan, 32**-0.5)
    assert torch.equal(out, attend_rows(MANY_CHUNKS, *tensors, plan, 32**-0.5)[0])
