"""Why a method can be behind a control: one line each, printed under the tables for those that are."""

from __future__ import annotations

REASONS = {
    "auto": "covering everything costs 1/block of the density before anything is exact, much where blocks are small",
    "pyramid": "it drops blocks, and in the coarser levels a mean stands for up to 8 keys",
    "rectified": (
        "R and C are the same for all queries of a block, as published: where its queries differ most of the rest is "
        "left to the critical blocks, which then are too few"
    ),
    "vmoba": "a query chooses among few chunks, cut in time or in space alone in two layers of three",
    "vmoba, tile routing": "as vmoba, and all queries of a tile choose together, by their mean",
    "neighborhood": "a window knows positions, not content, and is one for all heads",
    "radial": "a static mask, the same for all heads, and on few small frames never narrower than a tile",
}


def reasons(names: list[str]) -> str:
    """A Markdown list of the reasons of these methods."""
    return "\n".join(f"- {name}: {REASONS[name]}." for name in names if name in REASONS)
