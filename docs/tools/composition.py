"""The table of pairs in docs/composition.md, from the tests that prove it: `python -m docs.tools.composition`."""

from __future__ import annotations

import argparse
import importlib.util
import re
import sys
from collections import defaultdict
from pathlib import Path
from types import ModuleType

from diffattn.models.table import with_block

ROOT = Path(__file__).parents[2]
START, END = "<!-- pairs: python -m docs.tools.composition -->", "<!-- end of pairs -->"
PAIRS, GUIDED = "tests/integration/test_orders.py", "tests/guidance/test_orders.py"
COLUMNS = ("enable", "guide", "capture")
LABELS = {"StepCache": "FirstBlockCache", "SparseAttention": "enable", "StableDiffusion3Pipeline": "SD3"}


class Cells(defaultdict):
    """By `(row, column)`: the pipelines that a pair was tried on and the largest difference that a test allows."""

    def __init__(self) -> None:
        super().__init__(lambda: ([], 0.0))

    def add(self, one: str, other: str, pipeline: str, atol: float) -> None:
        """Note one pair, whichever of the two is named first."""
        row, column = (one, other) if one not in COLUMNS else (other, one)
        if row in COLUMNS and COLUMNS.index(row) < COLUMNS.index(column):
            row, column = column, row
        pipelines, largest = self[row, column]
        self[row, column] = ([*dict.fromkeys((*pipelines, pipeline))], max(largest, atol))


def pairs() -> str:
    """Markdown: a row for every feature, a column for everything of diffattn that comes and goes beside it."""
    cells = Cells()
    for one, other in load_tests(PAIRS).PAIRS:
        cells.add(one.name, other.name, "Wan", max(one.atol, other.atol))
    for pipeline, other, _ in load_tests(GUIDED).RUNS:
        cells.add(_label(other), "guide", LABELS.get(pipeline, pipeline), 0.0)
    head = ["", *(f"`{name}`" for name in COLUMNS)]
    lines = [head, ["---"] * len(head)]
    for row in dict.fromkeys(row for row, _ in cells):
        lines.append([f"`{row}`" if row in COLUMNS else row, *(_cell(cells.get((row, name))) for name in COLUMNS)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def load_tests(path: str) -> ModuleType:
    """A file of tests as a module."""
    sys.path[:0] = [folder for folder in (str(ROOT / "tests"),) if folder not in sys.path]
    spec = importlib.util.spec_from_file_location(path.replace("/", "_").removesuffix(".py"), ROOT / path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _label(name: str) -> str:
    return LABELS.get(name) or re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()


def _cell(found: tuple[list[str], float] | None) -> str:
    if found is None:
        return ""
    pipelines, atol = found
    return f"{f'within {atol:g}' if atol else 'equal'} ({', '.join(pipelines)})"


def main() -> None:
    """Renew the table in the page."""
    parser = argparse.ArgumentParser(prog="python -m docs.tools.composition", description=__doc__)
    parser.add_argument("--file", type=Path, default=ROOT / "docs" / "composition.md", help="with the two marks")
    path = parser.parse_args().file
    path.write_text(with_block(path.read_text(encoding="utf-8"), START, END, pairs()), encoding="utf-8")


if __name__ == "__main__":
    main()
