"""Block-sparse attention against what a user would pick instead, checked against float64 before it is timed.

    python -m benchmarks.attention --device cpu
    python -m benchmarks.attention --device cuda --backward
    python -m benchmarks.attention --join first.json second.json --output table.md

Random block lists for each head, log-weights and lse on. Exit code 1, and no speed, where a result is wrong.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path

import torch
from tqdm import tqdm

from .. import RESULTS
from .case import Case
from .measure import Row, fixed_keys, in_density, measure
from .report import DENSITIES, report

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
BACKWARD_DENSITIES = (0.25, 0.125)
AUTO_DENSITIES = (0.25, 0.4, 0.6, 0.72, 1.0)
# Device: shapes (S, D) by default, and with --quick; shapes of the sections `auto`, `backward` and `scaling`.
SHAPES = {
    "cpu": ([(8192, 64), (8192, 128), (16384, 64), (16384, 128), (32768, 64), (32768, 128)], [(2048, 64)]),
    "cuda": ([(s, d) for d in (64, 128) for s in (16384, 32768, 65536, 131072)], [(8192, 128)]),
}
SHORT = ([256, 512, 1024, 2048, 4096], [256, 1024])
BACKWARD = {"cpu": ([(8192, 64), (8192, 128)], [(1024, 64)]), "cuda": ([(32768, 64), (32768, 128)], [(8192, 128)])}
SCALING = {
    "cpu": ([2048, 4096, 8192, 16384, 32768], [1024, 2048]),
    "cuda": ([8192, 16384, 32768, 65536], [4096, 8192]),
}
TILES = {"cpu": [(128, 128), (256, 128)], "cuda": [(128, 128)]}
SECONDS = {"cpu": 40.0, "cuda": 5.0}  # for all rounds of one shape


@torch.no_grad()
def main(argv: list[str] | None = None) -> int:
    """Measure, print, and write the report."""
    options = _options(argv)
    jobs = [] if options.join else list(_jobs(options))
    rows, wrong = _joined(options.join or ()), []
    with tqdm(total=len(jobs), disable=options.json, file=sys.stderr) as progress:
        while jobs and not wrong:
            name, job = jobs.pop(0)  # with its inputs, which need not outlive it
            progress.set_description(name)
            for row in job():
                (wrong if row.wrong and row.name == "diffattn" else rows).append(row)
            progress.update()
    if wrong:
        print("\n".join(f"{row.section} {row.where}: {row.wrong}" for row in wrong), file=sys.stderr)
        return 1
    text = json.dumps([row.to_dict() for row in rows], indent=1) if options.json else report(rows, options)
    print(text)
    output = options.output
    if output is None and not _partial(options):
        output = RESULTS / f"attention-{options.device}.md"
    if output is not None:
        output.write_text(text + "\n", encoding="utf-8")
    return 0


def _options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.attention", description=__doc__.split("\n")[0])
    parser.add_argument("--device", choices=SHAPES, default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, help="default: bf16, on a CPU fp32 too")
    parser.add_argument("--sizes", nargs="+", type=int, help="tokens S, multiples of the tiles")
    parser.add_argument("--dims", nargs="+", type=int, help="head dims D")
    parser.add_argument("--densities", nargs="+", type=float, help="shares of the blocks that are kept")
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--tiles", type=_tiles, nargs="+", metavar="QxK", help="128x128, on a CPU 256x128 too")
    parser.add_argument("--sections", nargs="+", choices=("forward", "backward", "auto", "scaling"))
    parser.add_argument("--backward", action="store_true", help="the section backward too; on a CPU by default")
    parser.add_argument("--quick", action="store_true", help="small shapes, a minute; written only to --output")
    parser.add_argument("--json", action="store_true", help="rows as JSON instead of tables")
    parser.add_argument("--join", nargs="+", type=Path, metavar="JSON", help="one table of what earlier runs wrote")
    parser.add_argument("--output", type=Path, help="default for a full run: benchmarks/results/attention-DEVICE.md")
    options = parser.parse_args(argv)
    options.dtypes = options.dtypes or (["fp32", "bf16"] if options.device == "cpu" else ["bf16"])
    options.tiles = options.tiles or TILES[options.device]
    if options.sections is None:
        options.sections = ["forward", "auto", "scaling"]
        if options.backward or options.device == "cpu":
            options.sections.insert(1, "backward")
    multiple = math.lcm(*chain(*options.tiles))
    if any(size % multiple for size in options.sizes or ()):
        parser.error(f"--sizes must be multiples of {multiple} or have other --tiles, got {options.sizes}")
    return options


def _partial(options: argparse.Namespace) -> bool:
    """Whether this is less than the whole table, which alone is written without being asked."""
    whole = _options(["--device", options.device] + ["--backward"] * options.backward)
    return vars(options) | {"output": None} != vars(whole)


def _joined(files: Iterable[Path]) -> list[Row]:
    """The rows of several runs; a shape that was measured again counts as in the last of them."""
    shapes = {}
    for file in files:
        again = {}
        for entry in json.loads(file.read_text(encoding="utf-8")):
            row = Row(**entry)
            alone = row.section.startswith("time")  # a line through several shapes
            shape = (row.batch, row.heads, row.tokens, row.dim)
            again.setdefault((row.section, row.dtype, None if alone else shape), []).append(row)
        shapes |= again
    return list(chain(*shapes.values()))


def _tiles(text: str) -> tuple[int, int]:
    block_q, tile = text.split("x")
    return int(block_q), int(tile)


def _jobs(options: argparse.Namespace) -> Iterator[tuple[str, Callable[[], list[Row]]]]:
    """Name and function of every part; each gives its rows."""
    device, quick = options.device, options.quick
    seconds = SECONDS[device] / (10 if quick else 1)

    def case(dtype, tokens, dim, tiles=options.tiles[0]):
        return Case(device, DTYPES[dtype], tokens, dim, tiles, heads=options.heads)

    def shapes(table):
        if options.sizes or options.dims:
            return [(s, d) for d in options.dims or (64,) for s in options.sizes or table[0][0][:1]]
        return table[quick]

    for section in options.sections:
        for dtype in options.dtypes:
            name = f"{section} {dtype}"
            if section in ("forward", "backward"):
                densities = options.densities or (DENSITIES if section == "forward" else BACKWARD_DENSITIES)
                for tokens, dim in shapes(SHAPES[device] if section == "forward" else BACKWARD[device]):
                    cases = [case(dtype, tokens, dim, tiles) for tiles in options.tiles]
                    yield f"{name} S={tokens} D={dim}", partial(measure, cases, densities, section, seconds)
            elif section == "auto":
                for tokens in options.sizes or SHORT[quick]:
                    job = partial(measure, [case(dtype, tokens, 64)], AUTO_DENSITIES, section, seconds / 4)
                    yield f"{name} S={tokens}", job
            else:
                cases = [case(dtype, tokens, 64) for tokens in options.sizes or SCALING[device][quick]]
                yield f"{name}, density", partial(in_density, cases[len(cases) // 2], seconds)
                yield f"{name}, tokens", partial(fixed_keys, cases, seconds)


if __name__ == "__main__":
    sys.exit(main())
