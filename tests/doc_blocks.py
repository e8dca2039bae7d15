"""Fenced blocks of Markdown pages, and how each is checked: run, or resolved without running it.

A comment above a block says what to do with it:

    <!-- ci: run -->                       run it, in order, all blocks of a page in one namespace
    <!-- ci: run; OLD -> NEW; ... -->      run it with text replaced, such as sizes
    <!-- ci: gpu -->, download, slow       why it is not run
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

FENCE = re.compile(
    r"(?:^<!-- ci: (?P<marker>[^\n]*?) -->\n)?^(?P<indent> *)```(?P<language>\w+)[^\n]*\n(?P<text>.*?)^(?P=indent)```",
    re.MULTILINE | re.DOTALL,
)
SHELL, PYTHON = ("bash", "sh", "shell", "console"), ("python", "py")
NOT_RUN = ("gpu", "download", "slow")


@dataclass(frozen=True)
class Block:
    """One fenced block: `marker` is what the comment above it says, or None."""

    page: str
    line: int
    language: str
    text: str
    marker: str | None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def runs(self) -> bool:
        return self.marker is not None and self.marker.split(";")[0] == "run"

    @property
    def shell(self) -> bool:
        return self.language in SHELL

    def to_run(self) -> str:
        """The text with the marker's replacements, each of which must apply."""
        text = self.text
        for change in self.marker.split(";")[1:]:
            old, new = (side.strip() for side in change.split(" -> "))
            if old not in text:
                raise AssertionError(f"{self}: the marker replaces {old!r}, which the block does not hold")
            text = text.replace(old, new)
        return text


def blocks(page: Path, root: Path) -> list[Block]:
    """The shell and Python blocks of a page."""
    text, found = page.read_text(encoding="utf-8"), []
    for match in FENCE.finditer(text):
        if match["language"] in SHELL + PYTHON:
            line = text.count("\n", 0, match.start("language")) + 1
            inner = re.sub(f"^{match['indent']}", "", match["text"], flags=re.MULTILINE)
            found.append(Block(str(page.relative_to(root)), line, match["language"], inner, match["marker"]))
    return found


def check_marker(block: Block) -> None:
    """Raise unless the marker is one that is known."""
    if block.marker is not None and not block.runs and block.marker not in NOT_RUN:
        raise AssertionError(f"{block}: unknown marker {block.marker!r}; it is 'run' or one of {', '.join(NOT_RUN)}")
