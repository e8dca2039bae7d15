"""The log of a search on disk: a JSON file that describes the search, and append-only files of scores."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

CONFIG = "search.json"
LINES = "log-{:05d}.jsonl"


class SearchLog:
    """Scores by key, kept in a folder if there is one.

    Every process appends to a file of its own and reads the files of all, so that the number of processes may change
    between runs. A line that a killed process left half written is dropped.

    Args:
        folder (`Path`, *optional*): of the log; without one, scores are lost when the process ends.
        config (`dict`): JSON-ready description of the search.
        rank (`int`, *optional*, defaults to 0): number of this process.

    Raises:
        ValueError: the folder belongs to another search.
    """

    def __init__(self, folder: Path | None, config: dict, rank: int = 0) -> None:
        self.folder, self.config = folder, json.loads(json.dumps(config))
        self.file = None if folder is None else folder / LINES.format(rank)
        self.values: dict[tuple, Any] = {}
        if folder is not None:
            self._open(rank)

    def __contains__(self, key: tuple) -> bool:
        return key in self.values

    def __getitem__(self, key: tuple) -> Any:
        return self.values[key]

    def add(self, entries: Iterable[tuple[tuple, Any]]) -> None:
        """Add scores of this process; they are on disk when this returns."""
        entries = list(entries)
        self.merge(entries)
        if self.file is None or not entries:
            return
        with self.file.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps([list(key), value]) + "\n" for key, value in entries)
            file.flush()
            os.fsync(file.fileno())

    def merge(self, entries: Iterable[tuple[tuple, Any]]) -> None:
        """Add scores that another process found and wrote."""
        self.values.update(entries)

    def _open(self, rank: int) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / CONFIG
        if path.is_file():
            _compare(self.folder, json.loads(path.read_text(encoding="utf-8")), self.config)
        elif rank == 0:
            partial = path.with_suffix(".part")
            partial.write_text(json.dumps(self.config, indent=1) + "\n", encoding="utf-8")
            os.replace(partial, path)
        for file in sorted(self.folder.glob("log-*.jsonl")):
            self._read(file, mend=file == self.file)

    def _read(self, file: Path, mend: bool) -> None:
        whole, _, torn = file.read_bytes().rpartition(b"\n")
        for line in whole.splitlines():
            key, value = json.loads(line)
            self.values[tuple(key)] = value
        if torn and mend:
            os.truncate(file, len(whole) + 1 if whole else 0)


def fingerprint(value: Any) -> str:
    """A short hash of a JSON-ready value or of bytes."""
    data = value if isinstance(value, bytes) else json.dumps(value, sort_keys=True).encode()
    return hashlib.sha256(data).hexdigest()[:16]


def _compare(folder: Path, theirs: dict, ours: dict) -> None:
    different = [name for name in sorted({*theirs, *ours}) if theirs.get(name) != ours.get(name)]
    if different:
        said = "; ".join(f"{name} was {theirs.get(name)!r}, is {ours.get(name)!r}" for name in different)
        raise ValueError(f"{folder} belongs to another search: {said}. Give another folder, or remove this one")
