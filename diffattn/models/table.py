"""The table of supported classes, from the adapters themselves."""

from __future__ import annotations

from .adapter import Adapter, adapter_named, supported_models

HEADER = ("class", "self-attention that becomes sparse", "tokens beside the grid", "key mask", "reached through")
OTHERS = {"none": "none, text by cross-attention", "before": "before", "after": "after"}
MASKS = {"keys": "by key", "product": "product of two key masks", "packed": "none, dense where samples are packed"}
SEAMS = {"backend": "dispatcher", "active": "dispatcher, default backend", "sdpa": "`scaled_dot_product_attention`"}


def support_table() -> str:
    """Markdown, a row for every class; the tests run each of them at a tiny size."""
    rows = [HEADER, ("---",) * len(HEADER), *(_row(adapter_named(name)) for name in supported_models())]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _row(adapter: Adapter) -> tuple[str, ...]:
    others = OTHERS[adapter.others] if isinstance(adapter.others, str) else "before and after"
    return f"`{adapter.model}`", f"`{adapter.attention}`", others, MASKS[adapter.mask], SEAMS[adapter.seam]
