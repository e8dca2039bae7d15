"""One of two gloo processes: runs cases alone, then under Ulysses context parallelism, and saves both results."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from diffusers import ContextParallelConfig

import diffattn
from diffattn import PyramidConfig, RectifiedConfig, Schedule, VMoBAConfig

from .builders import case
from .cases import lengths, normal
from .own_block import OwnBlockConfig

ALWAYS = Schedule(dense_start=0, dense_end=0, dense_layers=0)
ONE_DENSE = Schedule(dense_start=0, dense_layers=1)
TEXT = {"encoder_hidden_states": (2, 8, 16)}
# text of a length that divides by two, as diffusers' even shares need
FLUX = {**TEXT, "txt_ids": torch.zeros(8, 3)}
QWEN = {**TEXT, "encoder_hidden_states_mask": lengths((8, 3), 8)}
RUNS = {
    "Wan own block": ("Wan", {}, OwnBlockConfig(), ALWAYS),
    "Wan vmoba": ("Wan", {}, VMoBAConfig(density=0.4, scope="head"), ALWAYS),
    "Wan pyramid": ("Wan", {}, PyramidConfig(density=0.4), ONE_DENSE),
    "Wan rectified": ("Wan", {}, RectifiedConfig(density=0.4), ALWAYS),
    "Wan dense": ("Wan", {}, OwnBlockConfig(), Schedule(dense_layers=1.0)),
    "LTX own block": ("LTXVideo", {**TEXT, "encoder_attention_mask": None}, OwnBlockConfig(), ALWAYS),
    "Flux own block": ("Flux", FLUX, OwnBlockConfig(), ALWAYS),
    "Flux pyramid": ("Flux", FLUX, PyramidConfig(density=0.4), ONE_DENSE),
    "Flux Kontext": ("Flux-Kontext", FLUX, OwnBlockConfig(), ALWAYS),
    "Qwen masked": ("QwenImage", QWEN, OwnBlockConfig(), ALWAYS),
}


def parallelize(model, **degrees) -> None:
    model.enable_parallelism(config=ContextParallelConfig(ulysses_degree=2, **degrees))


def run(at, model, changes) -> torch.Tensor:
    torch.manual_seed(1)
    inputs = {**at.inputs(), "return_dict": False}
    inputs |= {name: normal(*value) if isinstance(value, tuple) else value for name, value in changes.items()}
    with torch.no_grad():
        return model(**inputs)[0]


def calls(model) -> list[tuple[int, dict]]:
    return [(x.sparse_calls, dict(x.dense_calls)) for m in diffattn.summary(model).models for x in m.layers]


def compare(name: str) -> dict:
    """Outputs and calls of a run alone and of the same run shared."""
    model_name, changes, config, schedule = RUNS[name]
    at = case(model_name)
    alone, shared = at.build(), at.build()
    diffattn.enable(alone, config, schedule=schedule, impl="torch")
    wanted = run(at, alone, changes)
    parallelize(shared)
    diffattn.enable(shared, config, schedule=schedule, impl="torch")
    return {"alone": wanted, "shared": run(at, shared, changes), "calls": (calls(alone), calls(shared))}


def gradients() -> dict:
    """Of a weight before attention; every rank has those of its share of the tokens."""
    at, found = case("Wan"), {}
    for name in ("alone", "shared"):
        model = at.build()
        if name == "shared":
            parallelize(model)
        diffattn.enable(model, PyramidConfig(density=0.4), schedule=ALWAYS, impl="torch")
        torch.manual_seed(1)
        model(**at.inputs(), return_dict=False)[0].square().mean().backward()
        found[name] = model.blocks[0].attn1.to_q.weight.grad
    dist.all_reduce(found["shared"])
    return found


def uneven() -> dict:
    """Shares of unequal length: 7 tokens of text."""
    at = case("Flux")
    alone, shared = at.build(), at.build()
    diffattn.enable(alone, OwnBlockConfig(), schedule=ALWAYS, impl="torch")
    parallelize(shared, ulysses_anything=True)
    diffattn.enable(shared, OwnBlockConfig(), schedule=ALWAYS, impl="torch")
    return {"alone": run(at, alone, {}), "shared": run(at, shared, {}), "calls": (calls(alone), calls(shared))}


def late() -> dict:
    """Context parallelism enabled after diffattn."""
    at = case("Flux")
    model = at.build()
    diffattn.enable(model, OwnBlockConfig(), schedule=ALWAYS, impl="torch")
    wanted = run(at, model, FLUX)
    parallelize(model)
    return {"alone": wanted, "shared": run(at, model, FLUX), "calls": calls(model)}


def compiled() -> dict:
    """Repeated blocks as graphs."""
    at = case("Wan")
    model = at.build()
    parallelize(model)
    diffattn.enable(model, PyramidConfig(density=0.4), schedule=ONE_DENSE, impl="torch")
    wanted = run(at, model, {})
    model.compile_repeated_blocks(backend="eager", fullgraph=True)
    return {"alone": wanted, "shared": run(at, model, {}), "calls": calls(model)}


def main(rank: int, folder: Path) -> None:
    torch.accelerator.device_count = lambda: 1  # diffusers counts accelerators, and a CPU is none
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    results = {name: compare(name) for name in RUNS}
    results |= {made.__name__: made() for made in (gradients, uneven, late, compiled)}
    torch.save(results, folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
