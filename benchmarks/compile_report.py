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
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

from diffattn.kernels.backends.triton.config import ARCHITECTURES

from benchmarks.compile_cases import Case, cases, divisible, kernel_of, signature_of

# Bytes that one block may use: CUDA C++ Programming Guide, "Compute Capabilities"; LDS of CDNA3.
SHARED_LIMIT = {"sm_80": 163 << 10, "sm_86": 99 << 10, "sm_90": 227 << 10, "sm_100": 227 << 10, "gfx942": 64 << 10}
MMA = {
    "HMMA": r"\bHMMA\b",
    "HGMMA (wgmma)": r"\bHGMMA\b",
    "UTCHMMA (tcgen05)": r"\bUTC\w*MMA\b",
    "MFMA": r"\bv_mfma_\w+",
}
INTRODUCTION = """# What the compiler makes of the Triton kernels

`python -m benchmarks.compile_report`, triton {}, no GPU. Registers of a thread, bytes that a thread spills, bytes of
shared memory of a block, matrix instructions and TMA loads in the code. `specialized` is the warp-specialised forward
kernel, which is not launched by default; all have log-weights, the general case.

"""


class Result(NamedTuple):
    """What one specialisation compiles to; `spilled` and `shared` in bytes of a thread and of a block."""

    registers: int
    spilled: int
    shared: int
    mma: dict[str, int]
    tma: int

    def problems(self, case: Case) -> list[str]:
        """Why this launch is no good, empty if it is."""
        over = self.shared > SHARED_LIMIT[case.arch]
        return ["spills"] * (self.spilled > 0) + [f"shared memory over {SHARED_LIMIT[case.arch]}"] * over


def compile_case(case: Case) -> Result:
    """Compile ahead of time and read the resources off the binary; with log-weights, as for padding and pooling."""
    from triton import compile
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel, constants = kernel_of(case)
    signature = signature_of(case, kernel.arg_names, constants)
    source = ASTSource(kernel, signature, constants, divisible(signature))
    hip = case.arch.startswith("gfx")
    target = GPUTarget("hip", case.arch, 64) if hip else GPUTarget("cuda", int(case.arch[3:]), 32)
    kernel = compile(source, target=target, options=case.launch.options())
    assembly = kernel.asm["amdgcn"] if hip else _disassemble(kernel.asm["cubin"])
    mma = {name: len(re.findall(pattern, assembly)) for name, pattern in MMA.items()}
    registers, spilled = (_amd_resources if hip else _nvidia_resources)(assembly)
    mma = {name: count for name, count in mma.items() if count}
    return Result(registers, spilled, kernel.metadata.shared, mma, len(re.findall(r"\bUTMALDG\b", assembly)))


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
    parser.add_argument("--quick", action="store_true", help="one launch of the forward kernel, and of all on sm_90")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    todo = list(cases(args.arch, args.quick))
    if os.environ.pop("TRITON_INTERPRET", None) or not args.quick:  # triton reads it once: new processes see it gone
        with ProcessPoolExecutor(os.cpu_count(), mp_context=multiprocessing.get_context("spawn")) as pool:
            results = list(zip(todo, pool.map(compile_case, todo)))
    else:
        results = [(case, compile_case(case)) for case in todo]
    rows = [_row(case, result) for case, result in results]
    print(json.dumps(rows, indent=1) if args.json else _markdown(rows))
    return int(any(row["problems"] for row in rows))


def _row(case: Case, result: Result) -> dict:
    tiles = "+".join(map(str, case.tiles))
    launch = "{}x{}, {} warps, {} stages".format(*case.launch[:4])
    return {
        "kernel": case.kernel, "arch": case.arch, "dim": case.dim, "dtype": case.dtype,
        "plan": f"{case.block_q} x {tiles}", "launch": launch,
        "registers": result.registers, "spilled": result.spilled, "shared": result.shared,
        "mma": ", ".join(f"{count} {name}" for name, count in result.mma.items()) or "none", "tma": result.tma,
        "problems": ", ".join(result.problems(case)),
    }  # fmt: skip


def _markdown(rows: list[dict]) -> str:
    from triton import __version__

    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(map(str, row.values())) for row in rows)]
    return INTRODUCTION.format(__version__) + "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


if __name__ == "__main__":
    sys.exit(main())
