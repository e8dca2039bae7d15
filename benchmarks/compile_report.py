"""What the compiler makes of every launch of the Triton kernel, without a GPU.

    python -m benchmarks.compile_report --arch sm_80 sm_90 sm_100

Exit code 1 if a launch spills registers or needs more shared memory than a block may have on its architecture.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

from diffattn.kernels.triton_config import ARCHITECTURES, Launch, launch_for

# Bytes that one block may use: CUDA C++ Programming Guide, "Compute Capabilities"; LDS of CDNA3.
SHARED_LIMIT = {"sm_80": 163 << 10, "sm_86": 99 << 10, "sm_90": 227 << 10, "sm_100": 227 << 10, "gfx942": 64 << 10}
MMA = {
    "HMMA": r"\bHMMA\b",
    "HGMMA (wgmma)": r"\bHGMMA\b",
    "UTCHMMA (tcgen05)": r"\bUTC\w*MMA\b",
    "MFMA": r"\bv_mfma_\w+",
}
KERNELS = ("forward", "dq", "dkv")
STRIDES = ("i64",) * 3
LEVEL = ("*i32", STRIDES, "*i32", STRIDES, "i32")
TYPES = {
    "scale": "fp32", "group": "i32", "rows": "i32", "start": "i32", "level_rows": "i32", "order": "*i32",
    "first": "*i64", "counts": "*i32", "visitors": "*i32", "bits": "*i64",
} | dict.fromkeys(("logw", "lse", "grad_lse", "delta"), "*fp32")  # fmt: skip
# Arguments that nothing is known about; the launcher finds the rest to be multiples of 16.
ODD = {"group", "logw_strides", "order_strides", "lists_strides"}


class Case(NamedTuple):
    """One specialisation of a kernel."""

    kernel: str
    arch: str
    dim: int
    dtype: str
    block_q: int
    tiles: tuple[int, ...]
    chosen: Launch | None = None

    @property
    def launch(self) -> Launch:
        """The launch that the table gives it."""
        itemsize = 4 if self.dtype == "fp32" else 2
        return self.chosen or launch_for(self.arch, self.dim, itemsize, self.block_q, max(self.tiles), self.kernel)


class Result(NamedTuple):
    """What one specialisation compiles to; `spilled` and `shared` in bytes of a thread and of a block."""

    registers: int
    spilled: int
    shared: int
    mma: dict[str, int]

    def problems(self, case: Case) -> list[str]:
        """Why this launch is no good, empty if it is."""
        over = self.shared > SHARED_LIMIT[case.arch]
        return ["spills"] * (self.spilled > 0) + [f"shared memory over {SHARED_LIMIT[case.arch]}"] * over


def cases(archs: list[str], quick: bool = False) -> Iterator[Case]:
    """Every launch of the table once, with the plan that asks most of it; `quick`: one for each architecture."""
    for arch in archs:
        if quick:
            yield Case("forward", arch, 128, "bf16", 128, (64,))
            continue
        for kernel in KERNELS:
            yield from (Case(kernel, arch, 64, "bf16", *plan) for plan in ((128, (64,)), (64, (64,))))
            yield from (Case(kernel, arch, 128, "bf16", *plan) for plan in ((128, (128,)), (128, (64,)), (64, (64,))))
            yield Case(kernel, arch, 256, "bf16", 128, (64,))
            # tiles of 16 rows are packed
            yield Case(kernel, arch, 128, "bf16", 128, (16,) if kernel == "dkv" else (64, 16, 4))
            yield from (Case(kernel, arch, dim, "fp32", 64, (64,)) for dim in (64, 128, 256))


def compile_case(case: Case) -> Result:
    """Compile ahead of time and read the resources off the binary; with log-weights, as for padding and pooling."""
    from triton import compile
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel, constants = _kernel(case)
    signature = _signature(case, kernel.arg_names, constants)
    source = ASTSource(kernel, signature, constants, _divisible(signature))
    hip = case.arch.startswith("gfx")
    target = GPUTarget("hip", case.arch, 64) if hip else GPUTarget("cuda", int(case.arch[3:]), 32)
    kernel = compile(source, target=target, options=case.launch.options())
    assembly = kernel.asm["amdgcn"] if hip else _disassemble(kernel.asm["cubin"])
    mma = {name: len(re.findall(pattern, assembly)) for name, pattern in MMA.items()}
    registers, spilled = (_amd_resources if hip else _nvidia_resources)(assembly)
    return Result(registers, spilled, kernel.metadata.shared, {name: count for name, count in mma.items() if count})


def _kernel(case: Case) -> tuple:
    from diffattn.kernels import triton_dkv, triton_dq, triton_forward
    from diffattn.kernels.triton_common import query_constants

    if case.kernel == "dkv":
        constants = triton_dkv.key_constants(case.dim, case.block_q, case.tiles[0], True, case.launch)
        return triton_dkv.key_gradient_kernel, constants
    constants = query_constants(case.dim, case.block_q, case.tiles, (True,) * len(case.tiles), case.launch)
    kernels = {"forward": triton_forward.attention_kernel, "dq": triton_dq.query_gradient_kernel}
    return kernels[case.kernel], constants


def _signature(case: Case, names: list[str], constants: dict) -> dict:
    rows = ("query", "key", "value", "out")
    types = {name: f"*{case.dtype}" for name in (*rows, *(f"grad_{row}" for row in rows))}
    types |= TYPES | {"levels": (LEVEL,) * len(case.tiles)} | dict.fromkeys(constants, "constexpr")
    return {name: types.get(name, STRIDES) for name in names}


def _divisible(signature: dict) -> dict[tuple[int, ...], list]:
    """What the launcher finds out about real tensors: pointers, first rows and strides are multiples of 16."""

    def paths(kind, at):
        if isinstance(kind, tuple):
            for index, inner in enumerate(kind):
                yield from paths(inner, (*at, index))
        elif kind.startswith("*") or kind in ("i32", "i64"):
            yield at

    found = (paths(kind, (index,)) for index, (name, kind) in enumerate(signature.items()) if name not in ODD)
    return {path: [["tt.divisibility", 16]] for some in found for path in some if len(path) < 4}


def _disassemble(cubin: bytes) -> str:
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "-sass", "-res-usage", file.name]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _nvidia_resources(assembly: str) -> tuple[int, int]:
    found = {name: int(count) for name, count in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", assembly)}
    return found["REG"], found["STACK"] + found["LOCAL"]


def _amd_resources(assembly: str) -> tuple[int, int]:
    found = dict(re.findall(r"\.(vgpr_count|private_segment_fixed_size):\s+(\d+)", assembly))
    return int(found["vgpr_count"]), int(found["private_segment_fixed_size"])


def main(argv: list[str] | None = None) -> int:
    """Compile, print, and say whether every launch is sound."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--arch", nargs="+", choices=ARCHITECTURES, default=["sm_80", "sm_90", "sm_100"])
    parser.add_argument("--quick", action="store_true", help="one launch for each architecture")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    todo = list(cases(args.arch, args.quick))
    if os.environ.pop("TRITON_INTERPRET", None) or not args.quick:  # triton reads it once: new processes see it gone
        with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
            results = list(zip(todo, pool.map(compile_case, todo)))
    else:
        results = [(case, compile_case(case)) for case in todo]
    rows = [_row(case, result) for case, result in results]
    print(json.dumps(rows, indent=1) if args.json else _table(rows))
    return int(any(row["problems"] for row in rows))


def _row(case: Case, result: Result) -> dict:
    tiles = "+".join(map(str, case.tiles))
    launch = "{}x{} w{} s{}".format(*case.launch)
    return {
        "kernel": case.kernel, "arch": case.arch, "dim": case.dim, "dtype": case.dtype,
        "plan": f"{case.block_q} x {tiles}", "launch": launch,
        "registers": result.registers, "spilled": result.spilled, "shared": result.shared,
        "mma": ", ".join(f"{count} {name}" for name, count in result.mma.items()) or "none",
        "problems": ", ".join(result.problems(case)),
    }  # fmt: skip


def _table(rows: list[dict]) -> str:
    lines = [list(rows[0]), *(list(map(str, row.values())) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines)


if __name__ == "__main__":
    sys.exit(main())
