"""Two processes under Ulysses context parallelism do what one process does."""

import os
import subprocess
import sys
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers import ContextParallelConfig

import diffattn
from diffattn.integration.decision import ordered_ranks
from diffattn.integration.hook import find_hook
from diffattn.models import adapter_named, supported_models

from .builders import case
from .own_block import OwnBlockConfig

ROOT = Path(__file__).resolve().parents[2]
EXACT = ["Wan own block", "Wan vmoba", "Wan pyramid", "Wan dense", "LTX own block"]
JOINT = ["Flux own block", "Flux pyramid", "Flux Kontext", "Qwen masked"]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What each of the two processes saved."""
    folder = tmp_path_factory.mktemp("ranks")
    paths = os.pathsep.join([str(ROOT / "tests"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "models.parallel_worker"]
    logs = [open(folder / f"{rank}.log", "w+") for rank in (0, 1)]
    processes = [
        subprocess.Popen([*command, str(rank), str(folder)], env=environment, stdout=log, stderr=log)
        for rank, log in enumerate(logs)
    ]
    try:
        codes = [process.wait(timeout=280) for process in processes]
    finally:
        for process in processes:
            process.kill()
        said = [log.seek(0) or log.read()[-2000:] for log in logs]
    assert codes == [0, 0], said
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in (0, 1)]


@pytest.mark.parametrize("name", [*EXACT, *JOINT, "Wan rectified", "uneven", "compiled", "gradients", "late"])
def test_two_processes_give_the_result_of_one(results, name):
    for rank in results:
        if name in EXACT:
            assert torch.equal(rank[name]["shared"], rank[name]["alone"])
        torch.testing.assert_close(rank[name]["shared"], rank[name]["alone"], rtol=0, atol=1e-6)


def test_they_are_sparse_where_one_process_is(results):
    for rank in results:
        for name in [*EXACT, *JOINT, "uneven"]:
            alone, shared = rank[name]["calls"]
            assert shared == alone
            assert name == "Wan dense" or any(sparse for sparse, _ in alone)
        assert rank["compiled"]["calls"] == [(0, {"dense layer": 1}), (2, {})]


def test_context_parallelism_may_be_enabled_after_diffattn(results):
    assert all(count == (2, {}) for rank in results for count in rank["late"]["calls"])


@pytest.mark.parametrize("first", ["ring", "diffattn"])
def test_ring_attention_is_refused(first):
    model = case("Wan").build()
    before = dict(model.attn_processors)
    config = diffusers.ParallelConfig(context_parallel_config=ContextParallelConfig(ring_degree=2))
    if first == "ring":
        model._parallel_config = config
        with pytest.raises(NotImplementedError, match=r"ring_degree=2.*ulysses_degree=2"):
            diffattn.enable(model, OwnBlockConfig())
        assert all(model.attn_processors[name] is processor for name, processor in before.items())
        return
    diffattn.enable(model, OwnBlockConfig())
    with pytest.raises(NotImplementedError, match="never shows a rank the whole sequence"):
        model.blocks[0].attn1.processor._parallel_config = config


def test_tensor_parallelism_is_refused_by_name():
    made = getattr(diffusers, "TensorParallelConfig", None)
    if made is None:
        pytest.skip("this release of diffusers has no tensor parallelism")
    config = diffusers.ParallelConfig(tensor_parallel_config=made(tp_degree=2))
    model = case("Wan").build()
    model._parallel_config = config
    with pytest.raises(NotImplementedError, match=r"tp_degree=2.*ulysses_degree=2"):
        diffattn.enable(model, OwnBlockConfig())
    assert find_hook(model) is None


def test_the_order_of_shares_is_known_for_every_class_that_diffusers_can_share():
    for name in supported_models():
        assert ordered_ranks(adapter_named(name), 2) in (1, 2) or getattr(diffusers, name)._cp_plan is None
    assert "order is not known" in ordered_ranks(adapter_named("HunyuanVideoTransformer3DModel"), 2)
    assert ordered_ranks(adapter_named("HeliosTransformer3DModel"), 2) == 1
