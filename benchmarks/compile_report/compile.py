"""Compile one launch of a Triton kernel without a GPU, and read off the binary what it takes."""

from __future__ import annotations

import re
import subprocess
import tempfile
from typing import NamedTuple

from .cases import NAMES, Case
from .stand_in import compiling_for

# Bytes that one block may use: CUDA C++ Programming Guide, "Compute Capabilities"; LDS of CDNA3.
SHARED_LIMIT = {"sm_80": 163 << 10, "sm_86": 99 << 10, "sm_90": 227 << 10, "sm_100": 227 << 10, "gfx942": 64 << 10}
MMA = {
    "HMMA": r"\bHMMA\b",
    "HGMMA (wgmma)": r"\bHGMMA\b",
    "UTCHMMA (tcgen05)": r"\bUTC\w*MMA\b",
    "MFMA": r"\bv_mfma_\w+",
}


class Result(NamedTuple):
    """What one launch compiles to; `spilled` and `shared` in bytes of a thread and of a block.

    `steps` are the instructions of each innermost loop with matrix products, empty where they cannot be told: warps
    that only load have loops of their own, and AMD code is not read.
    """

    registers: int
    spilled: int
    shared: int
    mma: dict[str, int]
    tma: int
    steps: list[int]

    def problems(self, case: Case) -> list[str]:
        """Why this launch is no good, empty if it is."""
        over = self.shared > SHARED_LIMIT[case.arch]
        return ["spills"] * (self.spilled > 0) + [f"shared memory over {SHARED_LIMIT[case.arch]}"] * over


def compile_case(case: Case) -> Result:
    """Compile what the launch of a case compiles, and read the resources off the binary."""
    with compiling_for(case.arch) as launched:
        case.run()
    kernel = next(launch.compiled for launch in reversed(launched) if launch.kernel == NAMES[case.kernel])
    hip = case.arch.startswith("gfx")
    assembly = kernel.asm["amdgcn"] if hip else _disassemble(kernel.asm["cubin"])
    mma = {name: len(re.findall(pattern, assembly)) for name, pattern in MMA.items()}
    registers, spilled = (_amd_resources if hip else _nvidia_resources)(assembly)
    mma = {name: count for name, count in mma.items() if count}
    tma = len(re.findall(r"\bUTMALDG\b", assembly))
    return Result(registers, spilled, kernel.metadata.shared, mma, tma, [] if hip or tma else steps_of(assembly))


def steps_of(assembly: str) -> list[int]:
    """Instructions of every innermost loop that has matrix products, from NVIDIA machine code."""
    code = re.findall(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([\w.]+)(.*?);", assembly, re.MULTILINE)
    place = {int(address, 16): index for index, (address, _, _) in enumerate(code)}
    products = [index for index, (_, name, _) in enumerate(code) if re.match(r"HG?MMA|UTC\w*MMA", name)]
    loops = []
    for last, (_, name, operands) in enumerate(code):
        target = re.search(r"0x([0-9a-f]+)", operands) if name.startswith("BRA") else None
        first = place.get(int(target[1], 16), last) if target else last
        if first < last and any(first <= index <= last for index in products):
            loops.append((first, last))
    inner = [
        (first, last) for first, last in loops
        if not any(first <= other[0] and other[1] <= last for other in loops if other != (first, last))
    ]  # fmt: skip
    return [last - first + 1 for first, last in inner]


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
