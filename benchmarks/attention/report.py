"""Tables of `benchmarks.attention` in Markdown."""

from __future__ import annotations

import argparse
import platform
import shlex
import sys

import torch
from diffattn.kernels.backends.dense import break_even

from diffattn.analysis.summary import versions

from .measure import DENSE, Row

DENSITIES = (0.5, 0.25, 0.125, 0.0625)  # of the forward section, and of the README's table

COLUMNS = {
    "": lambda row: row.name,
    "dtype": lambda row: row.dtype,
    "B": lambda row: row.batch,
    "H": lambda row: row.heads,
    "S": lambda row: row.tokens,
    "D": lambda row: row.dim,
    "tiles": lambda row: row.tiles,
    "density": lambda row: f"{row.density:.3f}",
    "ms": lambda row: _or_wrong(row, lambda: f"{row.time * 1e3:.3g} ± {row.spread * 1e3:.2g}"),
    "speed-up": lambda row: _known(row.speedup, "{:.2f}"),
    "of ideal": lambda row: "" if row.tiles == DENSE else _known(row.ideal, "{:.2f}"),
    "TFLOP/s": lambda row: _known(row.tflops, "{:.3g}"),
    "MB": lambda row: _known(row.memory and row.memory / 2**20, "{:.0f}"),
}


def _even(dtype: torch.dtype) -> str:
    return ", ".join(f"{break_even(tokens, dtype):.2f} of {tokens:,} tokens" for tokens in (512, 1024, 2048, 8192))


TITLES = {
    "forward": "## Forward\n\nRandom block lists for each head; diffattn also computes log-weights and lse.",
    "backward": "## Backward\n\nGradients of query, key and value; the forward pass is not in the time.",
    "auto": (
        "## What auto chooses\n\nShort sequences and high densities, without lse. In a model, plans that keep more "
        f"than {_even(torch.float32)} in float32, {_even(torch.bfloat16)} in bf16 never reach these kernels: the "
        "model's own dense backend is faster."
    ),
    "time against density": "## Time against density",
    "time against length": "## Time against length\n\nEvery query keeps about the same number of keys.",
}  # fmt: skip
INTRODUCTION = """# Attention kernels

{device}, {threads} threads; {versions}. Medians of interleaved rounds ± half the distance between the quartiles.
`speed-up` is over the fastest dense row of the same shape and run, `of ideal` is speed-up x density, `TFLOP/s` counts
the products computed, `MB` is the peak memory above the inputs, the result included. Every row was within the error
budget against float64 before it was timed; a row without a time says why. Other libraries are measured
with the first tiles only.
"""


def report(rows: list[Row], options: argparse.Namespace) -> str:
    """Everything that was measured, with device, versions and the command."""
    device = torch.cuda.get_device_name() if options.device != "cpu" else _processor()
    known = ", ".join(f"{name} {version}" for name, version in versions().items())
    parts = [INTRODUCTION.format(device=device, threads=torch.get_num_threads(), versions=known)]
    for section, title in TITLES.items():
        found = [row for row in rows if row.section == section]
        if found:
            lines = [line_fit(found)] if section.startswith("time") else []
            parts.append("\n\n".join([title, _table(found), *lines]) + "\n")
    command = shlex.join(["python", "-m", "benchmarks.attention", *sys.argv[1:]])
    return "\n".join([*parts, f"Made by `{command}`."])


def line_fit(rows: list[Row]) -> str:
    """How well a line fits the times, against density or against length, by dtype."""
    by_density = rows[0].section == "time against density"
    sentences = []
    for dtype in dict.fromkeys(row.dtype for row in rows):
        some = [row for row in rows if row.dtype == dtype]
        # what a row costs is what it holds: the x of the second table is the number of products
        at = [row.density if by_density else row.density * row.tokens**2 for row in some]
        what = "density" if by_density else "products, that is against S"
        sentences.append(f"{dtype}: R² = {r_squared(at, [row.time for row in some]):.4f} against {what}.")
    return " ".join(sentences)


def r_squared(x: list[float], y: list[float]) -> float:
    """Share of the variance of `y` that a line in `x` explains.

    >>> round(r_squared([1, 2, 3], [2.1, 4.1, 6.1]), 6)
    1.0
    """
    pair = torch.tensor([x, y], dtype=torch.float64)
    return float(torch.corrcoef(pair)[0, 1] ** 2)


def _table(rows: list[Row]) -> str:
    columns = [(name, [str(cell(row)) for row in rows]) for name, cell in COLUMNS.items()]
    columns = [column for column in columns if any(column[1])]
    lines = [[name for name, _ in columns], ["---"] * len(columns), *zip(*(cells for _, cells in columns))]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _known(number: float | None, form: str) -> str:
    return "" if number is None else form.format(number)


def _or_wrong(row: Row, text) -> str:
    return row.wrong.replace("|", "/") or text()


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    extensions = [name for name, known in (("avx512_bf16", torch.cpu._is_avx512_bf16_supported()),
                                           ("AMX", torch.cpu._is_amx_tile_supported())) if known]  # fmt: skip
    return " with ".join([names[0] if names else platform.processor() or "CPU", *extensions])
