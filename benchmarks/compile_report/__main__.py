"""What the compiler makes of every launch of the Triton kernel, without a GPU.

    python -m benchmarks.compile_report --arch sm_80 sm_90 sm_100

Exit code 1 if a launch spills registers or needs more shared memory than a block may have on its architecture.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor

from diffattn.kernels.backends.triton.config import ARCHITECTURES

from .cases import Case, cases
from .compile import Result, compile_case

INTRODUCTION = """# What the compiler makes of the Triton kernels

`python -m benchmarks.compile_report`, triton {}, no GPU. Registers of a thread, bytes that a thread spills, bytes of
shared memory of a block, matrix instructions and TMA loads in the code, and the instructions of each loop with matrix
products (in `forward` two for each level: whole tiles in wide steps, and the rest in steps of {} keys). Argument types
are those of real launches, for 500 tokens in 512 rows. `specialized` is the warp-specialised forward kernel, which
is not launched by default. The plans of several levels are those of `auto`, `pyramid` and `sol`.

"""


def main(argv: list[str] | None = None) -> int:
    """Compile, print, and say whether every launch is sound."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compile_report", description=__doc__.split("\n")[0])
    parser.add_argument("--arch", nargs="+", choices=ARCHITECTURES, default=["sm_80", "sm_90", "sm_100"])
    parser.add_argument("--quick", action="store_true", help="one launch of the forward kernel, and of all on sm_90")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes that compile")
    args = parser.parse_args(argv)
    todo = list(cases(args.arch, args.quick))
    if os.environ.pop("TRITON_INTERPRET", None) or not args.quick:  # triton reads it once: new processes see it gone
        with ProcessPoolExecutor(args.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
            results = list(zip(todo, pool.map(compile_case, todo)))
    else:
        results = [(case, compile_case(case)) for case in todo]
    rows = [_row(case, result) for case, result in results]
    print(json.dumps(rows, indent=1) if args.json else _markdown(rows))
    return int(any(row["problems"] for row in rows))


def _row(case: Case, result: Result) -> dict:
    tiles = "+".join(map(str, case.tiles))
    launch = "{}x{}, {} warps, {} stages".format(*case.launch[:4]) if case.launch else ""
    return {
        "kernel": case.kernel, "arch": case.arch, "dim": case.dim, "dtype": case.dtype,
        "plan": f"{case.block_q} x {tiles}", "launch": launch,
        "registers": result.registers, "spilled": result.spilled, "shared": result.shared,
        "mma": ", ".join(f"{count} {name}" for name, count in result.mma.items()) or "none", "tma": result.tma,
        "instructions of a step": ", ".join(map(str, result.steps)),
        "problems": ", ".join(result.problems(case)),
    }  # fmt: skip


def _markdown(rows: list[dict]) -> str:
    from diffattn.kernels.backends.triton.forward import TAIL
    from triton import __version__

    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(map(str, row.values())) for row in rows)]
    return INTRODUCTION.format(__version__, TAIL) + "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


if __name__ == "__main__":
    sys.exit(main())
