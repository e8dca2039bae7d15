"""The README's speeds, from the committed results of `benchmarks.attention`: `python -m docs.tools.readme`."""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks import RESULTS
from benchmarks.attention.report import DENSITIES
from diffattn.models.table import with_block

ROOT = Path(__file__).parents[2]
DEVICES = ("cuda", "cpu")
START, END = "<!-- speed: python -m docs.tools.readme -->", "<!-- end of speed -->"
MEASURE = "python -m benchmarks.attention --device cpu"
OURS = "diffattn"


def speeds(results: Path = RESULTS) -> str:
    """Markdown: a table for every device that has a result, or that there is none.

    Args:
        results (`Path`, *optional*): folder with `attention-cpu.md` and `attention-cuda.md`, or one, or neither.

    Raises:
        ValueError: a result without forward passes of ours, as a run of some sections leaves.
    """
    found = [path for device in DEVICES if (path := results / f"attention-{device}.md").is_file()]
    if not found:
        return f"**Speed: not yet measured.** `{MEASURE}` measures it, `python -m docs.tools.readme` writes it here."
    return "\n\n".join(map(_speeds, found))


def _speeds(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    rows = [row for row in forward_rows(text) if row[""] == OURS]
    if not rows:
        raise ValueError(f"{path} has no forward pass of {OURS}: make it whole again with {MEASURE}")
    rows = [row for row in rows if row["tiles"] == rows[0]["tiles"]]  # others are in the results
    device = text.split("\n\n", 2)[1].split(";")[0]
    dense = ", ".join(dict.fromkeys(row[""] for row in forward_rows(text) if row["tiles"] == "-"))
    shares = " | ".join(f"density {density:.4g}" for density in DENSITIES)
    lines = [f"| shape | {shares} |", "|---" * (1 + len(DENSITIES)) + "|"]
    for (dtype, dim), longest in sorted(_longest(rows).items(), reverse=True):
        shape = [row for row in rows if (row["dtype"], row["D"], row["S"]) == (dtype, dim, str(longest))]
        lines.append(f"| {longest:,} tokens, head dim {dim}, {dtype} | " + " | ".join(_cells(shape)) + " |")
    about = f"Speed-up of one attention call over the fastest dense one ({dense}) of the same run, by the share of "
    about += f"the products computed, on {device} ([all results](benchmarks/results/{path.name})):"
    return "\n".join([about, "", *lines])


def forward_rows(text: str) -> list[dict[str, str]]:
    """The rows of the table of forward passes, by column."""
    section = text.split("## Forward", 1)[-1].split("\n## ", 1)[0] if "## Forward" in text else ""
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"]
    return [dict(zip(table[0], row)) for row in table[2:]]


def _longest(rows: list[dict[str, str]]) -> dict[tuple[str, str], int]:
    """The most tokens measured for a dtype and head dim."""
    found: dict[tuple[str, str], int] = {}
    for row in rows:
        key = row["dtype"], row["D"]
        found[key] = max(found.get(key, 0), int(row["S"]))
    return found


def _cells(rows: list[dict[str, str]]) -> list[str]:
    """Speed-ups in the order of `DENSITIES`; random blocks meet a density to the nearest block."""
    cells = []
    for density in DENSITIES:
        near = min(rows, key=lambda row: abs(float(row["density"]) - density))
        close = abs(float(near["density"]) - density) < 0.1 * density
        cells.append(f"{near['speed-up']}x" if close and near["speed-up"] else "")
    return cells


def main() -> None:
    """Renew the block in the README."""
    parser = argparse.ArgumentParser(prog="python -m docs.tools.readme", description=__doc__)
    parser.add_argument("--file", type=Path, default=ROOT / "README.md", help="with the two marks")
    path = parser.parse_args().file
    path.write_text(with_block(path.read_text(encoding="utf-8"), START, END, speeds()), encoding="utf-8")


if __name__ == "__main__":
    main()
