"""The table of supported classes, from the adapters themselves."""

from __future__ import annotations

from ..grid import TokenGrid
from ..methods import METHODS
from .adapter import Adapter, adapter_named, supported_models
from .not_supported import NOT_SUPPORTED

HEADER = ("class", "tokens on the grid", "other tokens of the sequence", "key mask", "methods", "tested")
OTHER_TOKENS = {"none": "none (text by cross-attention)", "before": "before", "after": "after"}
MASKS = {
    "keys": "by key",
    "product": "product of key masks",
    "segments": "by segment",
    "packed": "dense where samples are packed",
}
START, END = "<!-- models: python -m diffattn.models README.md docs/models.md -->", "<!-- end of models -->"
OTHERS, END_OF_OTHERS = "<!-- models that are left alone: the same command -->", "<!-- end of those -->"
IMAGE = TokenGrid(1, 64, 64)


def support_table() -> str:
    """The table in Markdown, with a row for every class."""
    rows = [HEADER, ("---",) * len(HEADER), *(_row(adapter_named(name)) for name in supported_models())]
    return _markdown(rows)


def not_supported_table() -> str:
    """The classes that are left alone, in Markdown, and why."""
    rows = [("class", "why not"), ("---",) * 2, *((f"`{name}`", why) for name, why in NOT_SUPPORTED.items())]
    return _markdown(rows)


def with_table(text: str) -> str:
    """`text` with the present table between its two marks, and the one of the other classes where it has these marks.

    Raises:
        ValueError: the text lacks the marks.
    """
    text = with_block(text, START, END, support_table())
    return with_block(text, OTHERS, END_OF_OTHERS, not_supported_table()) if OTHERS in text else text


def with_block(text: str, start: str, end: str, block: str) -> str:
    """`text` with `block` between its two marks.

    Raises:
        ValueError: the text lacks the marks.
    """
    if not -1 < text.find(start) < text.find(end):
        raise ValueError(f"the text has no {start!r} that is followed by {end!r}")
    before, rest = text.split(start, 1)
    return f"{before}{start}\n\n{block}\n\n{end}{rest.split(end, 1)[1]}"


def methods_for(adapter: Adapter) -> list[str]:
    """The methods that compute less than dense attention in this family: some need more than one frame."""
    if adapter.kind == "video":
        return sorted(METHODS)
    return sorted(name for name, method in METHODS.items() if method.dynamic or method().plan(IMAGE).density < 0.99)


def _markdown(rows: list[tuple[str, ...]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _row(adapter: Adapter) -> tuple[str, ...]:
    others = OTHER_TOKENS[adapter.other_tokens] if isinstance(adapter.other_tokens, str) else "before and after"
    lacking = sorted(set(METHODS) - set(methods_for(adapter)))
    methods = "all but " + ", ".join(lacking) if lacking else "all"
    tested = ", ".join(("class", *adapter.tested))
    return f"`{adapter.model}`", adapter.kind, others, MASKS[adapter.mask], methods, tested
