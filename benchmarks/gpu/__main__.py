"""The first minutes on a GPU as one program: is it right, how fast is it, and which launches should be the default?

    python -m benchmarks.gpu --budget 480 --output gpu.jsonl

Every row is written when it is there, as a line of JSON. A row that fails says why, and the rest goes on; what the
budget does not reach is named. `--dry-run` runs all of it at tiny sizes on a CPU.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch

from .correctness import checks
from .launches import launch_times, proposal
from .sizes import Sizes
from .speeds import method_times, speeds

Row = dict[str, object]
Job = tuple[str, Callable[[], Row]]
SECTIONS: dict[str, Callable[[Sizes], Iterator[Job]]] = {
    "correctness": checks,
    "launch": launch_times,
    "speed": speeds,
    "method": method_times,
}


def run(sizes: Sizes, budget: float) -> Iterator[Row]:
    """The rows of all sections, until `budget` seconds are over."""
    end = time.monotonic() + budget
    for section, jobs in SECTIONS.items():
        for name, job in jobs(sizes):
            row: Row = {"section": section, "name": name}
            if time.monotonic() > end:
                yield row | {"error": "no time left"}
                continue
            started = time.monotonic()
            try:
                row |= job()
            except Exception as error:  # the next row may be right
                row["error"] = f"{type(error).__name__}: {error}"[:500]
            yield row | {"seconds": round(time.monotonic() - started, 2)}


def main(argv: list[str] | None = None) -> int:
    """Run, write the rows, and print the launches to commit; exit code 1 if a result is wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.split("\n")[0])
    parser.add_argument("--budget", type=float, default=480, help="seconds")
    parser.add_argument("--output", type=Path, default=Path("gpu.jsonl"))
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes, on a CPU")
    args = parser.parse_args(argv)
    if not args.dry_run and not torch.cuda.is_available():
        parser.error("no GPU is here: use --dry-run")
    rows = []
    with args.output.open("w", encoding="utf-8") as file:
        write = partial(print, file=file, flush=True)
        for row in run(Sizes.tiny() if args.dry_run else Sizes(), args.budget):
            rows.append(row)
            write(json.dumps(row))
            print(*(f"{name}={value}" for name, value in row.items()), flush=True)
    print(proposal(rows))
    return int(any(row.get("right") is False for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
