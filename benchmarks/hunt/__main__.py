"""What a search for heads finds on the embedded model, and what it costs: `python -m benchmarks.hunt --help`."""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from .. import RESULTS
from .objectives import load_for_any_grid
from .report import EXHAUSTIVE, SCREENED, check_line, table, verdict, write
from .searches import HEADS, OBJECTIVES, check, folder_of, measure, publish


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.hunt", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--objectives", nargs="+", choices=OBJECTIVES, default=["sharpness"])
    parser.add_argument("--prompts", type=int, default=6)
    parser.add_argument("--held-out", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--top-k", type=int, default=2)
    parser.add_argument("--keep", type=float, default=0.2, help="share of the heads the screen keeps")
    parser.add_argument("--scale", type=float, default=0.5, help="w")
    parser.add_argument("--strength", type=float, default=0.5, help="u")
    parser.add_argument("--size", type=int, default=64, choices=(32, 64, 128), help="of the grids of training")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--guidance-scale", type=float, default=1.0, help="classifier-free guidance, 1 is none")
    parser.add_argument("--check", type=int, default=10, help="held-out captions at 128x128, 0 for none")
    parser.add_argument("--check-steps", type=int, default=10)
    parser.add_argument("--resume", type=Path, help="folder for the logs and reports of the searches")
    parser.add_argument("--publish", action="store_true", help=f"save the first objective's heads to {HEADS.name}")
    parser.add_argument("--output", type=Path, default=RESULTS / "hunt.md")
    return parser.parse_args(argv)


def run(args: argparse.Namespace, folder: Path) -> str:
    """Search and score; the page."""
    start = time.monotonic()
    pipe, sections = load_for_any_grid(), {}
    for name in args.objectives:
        rows, sets = measure(pipe, OBJECTIVES[name], args, folder)
        sections[name] = [*table(rows), "", *verdict(rows)]
        if args.check:
            sections[name].append(check_line(check(pipe, OBJECTIVES[name], sets[SCREENED], args), args))
        if args.publish and name == args.objectives[0]:
            publish(sets[SCREENED], folder_of(folder, OBJECTIVES[name], EXHAUSTIVE))
    return write(sections, args, time.monotonic() - start)


def main(argv: list[str] | None = None) -> None:
    """Search, score and write the table."""
    args = parse_args(argv)
    with tempfile.TemporaryDirectory() as scratch:
        page = run(args, args.resume or Path(scratch))
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(page, encoding="utf-8")
    print(page)


if __name__ == "__main__":
    main()
