"""How the Triton kernel is launched: a fixed table, chosen from what the compiler reports, not tuned at run time.

`python -m benchmarks.compile_report` compiles every row, without a GPU, and fails where one spills registers or asks
for more shared memory than the architecture has.
"""

from __future__ import annotations

from typing import NamedTuple

import torch


class Launch(NamedTuple):
    """Rows of a query block and of a key step, the resources of one program, and whether some warps only load."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int
    specialized: bool = False

    def options(self) -> dict:
        """Compiler options; the default of FP fusion changes with the Triton release, so it is spelt out."""
        return {"num_warps": self.num_warps, "num_stages": self.num_stages, "enable_fp_fusion": True}


# By architecture and padded head dim, the widest first; 128 x 128 where its registers and shared memory allow.
FORWARD = {
    "sm_80": {
        64: (Launch(128, 64, 8, 3), Launch(64, 64, 4, 3)),
        128: (Launch(128, 64, 8, 3), Launch(64, 64, 4, 2)),
        256: (Launch(64, 64, 8, 2),),
    },
    "sm_86": {
        64: (Launch(128, 64, 8, 3), Launch(64, 64, 4, 3)),
        128: (Launch(128, 64, 8, 2), Launch(64, 64, 4, 2)),
        256: (Launch(64, 32, 8, 2),),
    },
    "sm_90": {
        64: (Launch(128, 64, 8, 3), Launch(64, 64, 4, 3)),
        128: (Launch(128, 128, 8, 3), Launch(128, 64, 8, 3), Launch(64, 64, 4, 2)),
        256: (Launch(64, 64, 8, 2),),
    },
    "sm_100": {
        64: (Launch(128, 64, 8, 2), Launch(64, 64, 4, 3)),
        128: (Launch(128, 128, 8, 3), Launch(128, 64, 8, 3), Launch(64, 64, 4, 2)),
        256: (Launch(64, 64, 8, 2),),
    },
    "gfx942": {
        64: (Launch(128, 64, 4, 2), Launch(64, 64, 4, 2)),
        128: (Launch(128, 64, 4, 2), Launch(64, 64, 4, 2)),
        256: (Launch(64, 32, 4, 2),),
    },
}
# Warp-specialised launches of the forward kernel; the compiler adds the loading warps to `num_warps`. They replace the
# plain ones on the architectures in SPECIALIZED_ON, where they were measured to be faster: none yet.
SPECIALIZED = {
    "sm_90": {
        64: (Launch(128, 128, 4, 2, True), Launch(128, 64, 4, 3, True), Launch(64, 64, 4, 2, True)),
        128: (Launch(128, 128, 4, 2, True), Launch(128, 64, 4, 3, True), Launch(64, 64, 4, 2, True)),
    },
    "sm_100": {
        64: (Launch(128, 128, 8, 2, True), Launch(128, 64, 8, 3, True)),
        128: (Launch(128, 128, 8, 2, True), Launch(128, 64, 8, 3, True)),
    },
}
SPECIALIZED_ON: frozenset[str] = frozenset()
# Gradients hold more rows in registers: two operands and one sum for dq, two of each for dk and dv. There
# block_m counts the query rows of a step, and block_n keys.
DQ = {
    "sm_80": {
        64: (Launch(128, 64, 8, 2), Launch(64, 64, 4, 2)),
        128: (Launch(64, 64, 8, 2),),
        256: (Launch(64, 32, 8, 2),),
    },
    "sm_86": {64: (Launch(64, 64, 4, 2),), 128: (Launch(64, 32, 8, 2),), 256: (Launch(32, 32, 8, 2),)},
    "sm_90": {
        64: (Launch(128, 64, 8, 2), Launch(64, 64, 4, 2)),
        128: (Launch(128, 64, 8, 2), Launch(64, 64, 4, 2)),
        256: (Launch(64, 32, 8, 2),),
    },
    "sm_100": {
        64: (Launch(128, 64, 8, 2), Launch(64, 64, 4, 2)),
        128: (Launch(128, 64, 8, 2), Launch(64, 64, 8, 2)),
        256: (Launch(64, 32, 8, 2),),
    },
    "gfx942": {64: (Launch(64, 64, 4, 2),), 128: (Launch(64, 32, 8, 2),), 256: (Launch(16, 32, 4, 2),)},
}
DKV = {
    "sm_80": {64: (Launch(64, 64, 4, 2),), 128: (Launch(64, 64, 8, 2),), 256: (Launch(64, 32, 8, 2),)},
    "sm_86": {64: (Launch(64, 64, 4, 2),), 128: (Launch(64, 32, 8, 2),), 256: (Launch(32, 32, 8, 2),)},
    "sm_90": {
        64: (Launch(64, 128, 8, 2), Launch(64, 64, 4, 2)),
        128: (Launch(32, 128, 8, 2), Launch(64, 64, 8, 2)),
        256: (Launch(64, 32, 8, 2),),
    },
    "sm_100": {
        64: (Launch(64, 128, 8, 2), Launch(64, 64, 4, 2)),
        128: (Launch(64, 64, 8, 2),),
        256: (Launch(64, 32, 8, 2),),
    },
    "gfx942": {64: (Launch(64, 64, 4, 2),), 128: (Launch(32, 32, 4, 2),), 256: (Launch(16, 32, 4, 1),)},
}
WHOLE_TILES_ONLY = frozenset({"sm_100"})  # in steps of 128 keys: small tiles side by side would spill
HALF = {"forward": FORWARD, "dq": DQ, "dkv": DKV}
# Without TF32 the products run outside the matrix units and live in registers: small blocks on every architecture.
SINGLE_GRADIENT = {64: (Launch(32, 32, 4, 2),), 128: (Launch(32, 32, 8, 2),), 256: (Launch(16, 16, 4, 2),)}
SINGLE = {
    "forward": {64: (Launch(32, 32, 4, 2),), 128: (Launch(64, 32, 8, 2),), 256: (Launch(16, 16, 4, 2),)},
    "dq": SINGLE_GRADIENT,
    "dkv": SINGLE_GRADIENT,
}
INTERPRETER = (
    Launch(128, 128, 4, 1),
    Launch(128, 64, 4, 1),
)  # its time depends on the number of steps only
ARCHITECTURES = tuple(FORWARD)


def architecture(device: torch.device) -> str:
    """Row of the table for `device`; `sm_86` stands for every NVIDIA GPU with about 100 KB of shared memory."""
    if device.type != "cuda":
        return "interpreter"
    if torch.version.hip:
        return "gfx942"
    major, minor = torch.cuda.get_device_capability(device)
    if (major, minor) in ((8, 0), (8, 7)):
        return "sm_80"
    return {9: "sm_90", 10: "sm_100"}.get(major, "sm_86")


def launch_for(
    arch: str, dim: int, itemsize: int, block_q: int, tiles: tuple[int, ...], kernel: str = "forward"
) -> Launch:
    """The widest launch that a query tile of `block_q` rows and KV tiles of `tiles` rows, by level, fill.

    Args:
        arch (`str`): one of `ARCHITECTURES` or `"interpreter"`.
        dim (`int`): head dim, at most 256.
        itemsize (`int`): bytes of one element of query, key and value.
        kernel (`str`, *optional*, defaults to `"forward"`): or `"dq"` or `"dkv"`.
    """
    rows = max(16, _next_power_of_2(block_q))
    padded = max(64, _next_power_of_2(dim))
    half_or_single = SINGLE[kernel] if itemsize == 4 else HALF[kernel].get(arch)
    table = {padded: INTERPRETER} if arch == "interpreter" else half_or_single
    *wide, smallest = table[padded]
    for launch in wide:
        if launch.block_m <= rows and (launch.block_n <= 64 or _fill(arch, tiles, launch.block_n)):
            return launch
    return smallest._replace(block_m=min(smallest.block_m, rows))


def _fill(arch: str, tiles: tuple[int, ...], step: int) -> bool:
    widths = [min(tiles), max(tiles)] if arch in WHOLE_TILES_ONLY else [max(tiles)]
    return all(width % step == 0 for width in widths)


def specialized_for(arch: str, dim: int, itemsize: int, block_q: int, tile: int) -> Launch | None:
    """The widest warp-specialised launch whose blocks fill the tiles exactly, None if there is none."""
    table = SPECIALIZED.get(arch, {}) if itemsize == 2 else {}
    fitting = (
        launch
        for launch in table.get(max(64, _next_power_of_2(dim)), ())
        if block_q % launch.block_m == 0 and tile % launch.block_n == 0
    )
    return next(fitting, None)


def _next_power_of_2(number: int) -> int:
    return 1 << (number - 1).bit_length()
