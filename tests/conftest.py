"""Set before anything imports triton: without a GPU its kernels run in the interpreter."""

import math
import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(autouse=True)
def sparse_however_small(monkeypatch):
    """Models of tests have few tokens, and plans keep most: dense attention is faster, and not what is tested."""
    monkeypatch.setattr("diffattn.integration.plan_store.break_even", lambda *_: math.inf)


@pytest.fixture(autouse=True)
def denormals():
    """Training has the processor round them to zero, which hypothesis refuses to draw numbers under."""
    yield
    torch.set_flush_denormal(False)
