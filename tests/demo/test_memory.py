"""Runs leave nothing behind: not a tensor, not a byte of them, not an object."""

from collections import deque
from dataclasses import replace

import pytest
import torch

pytest.importorskip("gradio")

from benchmarks.memory import SMALL, Left, left
from diffattn.demo import Worker
from diffattn.demo.sessions import Sessions

METHODS = ("auto", "vmoba", "neighborhood")  # plans of their own, of each token, of the grid alone
OBJECTS = 200  # that interpreter and libraries may keep for themselves, of more than half a million


@pytest.fixture
def make():
    """Runs methods in turn, with guidance, and counts what is there afterwards."""
    worker, sessions = Worker(device="cpu"), Sessions()

    def make() -> Left:
        for method in METHODS:
            asked = worker.check(replace(SMALL, method=method, steps=1, heads=("4:0",)))
            deque(worker.run(asked, sessions.begin("me")), maxlen=0)
        return left()

    yield make
    sessions.close("me")


def test_later_runs_leave_no_tensors_and_no_objects_behind(make):
    make()  # methods keep constants of a grid
    before = make()
    after = make()
    assert (after.tensors, after.megabytes) == (before.tensors, before.megabytes)
    assert abs(after.objects - before.objects) < OBJECTS


def test_a_tensor_that_stays_is_counted():
    before = left()
    kept = [torch.zeros(1024, 1024), torch.zeros(1024, 1024)]
    kept.append(kept[0][:2])
    after = left()
    assert after.tensors - before.tensors == len(kept) and round(after.megabytes - before.megabytes, 6) == 8
