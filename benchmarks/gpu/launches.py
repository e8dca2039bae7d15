"""Candidates for the table of launches, timed on one shape."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from diffattn.kernels.backends.triton.config import Launch

from ..attention.case import Case
from ..timing import in_turns
from .sizes import Sizes

CANDIDATES = (
    Launch(128, 128, 8, 2), Launch(128, 128, 8, 3), Launch(128, 64, 8, 3), Launch(128, 64, 8, 4), Launch(64, 64, 4, 3),
    Launch(128, 128, 4, 2, True), Launch(128, 64, 4, 3, True),
)  # fmt: skip


def launch_times(sizes: Sizes) -> Iterator[tuple[str, Callable[[], dict]]]:
    """Every candidate at every head dim, on tiles of 128 x 128."""
    for dim in sizes.dims:
        case = Case(sizes.device, sizes.dtype, sizes.lengths[0], dim, heads=sizes.heads[0])
        for launch in CANDIDATES:
            yield f"head dim {dim}, {describe(launch)}", partial(_time, sizes, case, launch)


def describe(launch: Launch) -> str:
    """The launch in words."""
    words = f"{launch.block_m}x{launch.block_n}, {launch.num_warps} warps, {launch.num_stages} stages"
    return words + (", specialised" if launch.specialized else "")


def _time(sizes: Sizes, case: Case, launch: Launch) -> dict:
    from diffattn.kernels.backends.triton.forward import check_kernel_inputs, run_forward

    plan = case.plan(case.blocks(sizes.densities[0]))
    query, key, value = (part.transpose(1, 2) for part in case.inputs)
    check_kernel_inputs(query, plan)
    found = in_turns({"": lambda: run_forward(query, key, value, plan, 0.1, launch)}, sizes.device, sizes.seconds)[""]
    return {"ms": found.median * 1e3, "dim": case.dim, "launch": list(launch)}


def proposal(rows: list[dict]) -> str:
    """The fastest launch of each head dim, as text for the table in `kernels/backends/triton/config.py`."""
    timed = [row for row in rows if row["section"] == "launch" and "ms" in row]
    if not timed:
        return "No launch was timed: the table stays as it is."
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else "a CPU, which says nothing"
    lines = [f"The fastest launches on {where}:"]
    for dim in sorted({row["dim"] for row in timed}):
        best = min((row for row in timed if row["dim"] == dim), key=lambda row: row["ms"])
        lines.append(f"{dim}: {Launch(*best['launch'])},  # {best['ms']:.3f} ms")
    return "\n".join(lines)
