"""Compile one specialisation of a Triton kernel ahead of time, and read off the binary what it takes."""

from __future__ import annotations

import re
import subprocess
import tempfile
from typing import NamedTuple

from .cases import Case, divisible, kernel_of, signature_of

# Bytes that one block may use: CUDA C++ Programming Guide, "Compute Capabilities"; LDS of CDNA3.
SHARED_LIMIT = {"sm_80": 163 << 10, "sm_86": 99 << 10, "sm_90": 227 << 10, "sm_100": 227 << 10, "gfx942": 64 << 10}
MMA = {
    "HMMA": r"\bHMMA\b",
    "HGMMA (wgmma)": r"\bHGMMA\b",
    "UTCHMMA (tcgen05)": r"\bUTC\w*MMA\b",
    "MFMA": r"\bv_mfma_\w+",
}


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
