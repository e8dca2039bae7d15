"""The runs of every session: a session is one browser tab or one API client."""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

KEPT_RUNS = 2  # whose files stay: a download from the run before the last can finish


@dataclass(frozen=True)
class Run:
    """The folder that a run writes to, and whether it was asked to stop."""

    folder: Path
    stop: threading.Event = field(default_factory=threading.Event)


class Sessions:
    """The runs of every session, below one temporary folder that is removed with this object.

    Args:
        parent (`str`, *optional*): where to make that folder; that of temporary files if not given.
    """

    def __init__(self, parent: str | None = None) -> None:
        if parent is not None:
            Path(parent).mkdir(parents=True, exist_ok=True)
        self._folder = tempfile.TemporaryDirectory(prefix="diffattn-demo-", dir=parent, ignore_cleanup_errors=True)
        self._runs: dict[str, list[Run]] = defaultdict(list)
        self._lock = threading.Lock()

    @property
    def folder(self) -> Path:
        """Everything the demo writes lies below it."""
        return Path(self._folder.name).resolve()

    def begin(self, session: str) -> Run:
        """A new run with a folder of its own; the oldest files of the session go."""
        run = Run(Path(tempfile.mkdtemp(dir=self.folder)))
        with self._lock:
            runs = self._runs[session]
            runs.append(run)
            old, runs[:] = runs[:-KEPT_RUNS], runs[-KEPT_RUNS:]
        _remove(old)
        return run

    def stop(self, session: str) -> bool:
        """Stop the runs of a session at their next step; False where it has none."""
        with self._lock:
            runs = list(self._runs.get(session, ()))
        for run in runs:
            run.stop.set()
        return bool(runs)

    def close(self, session: str) -> None:
        """Stop the runs of a session and remove their files."""
        with self._lock:
            runs = self._runs.pop(session, [])
        _remove(runs)


def _remove(runs: list[Run]) -> None:
    for run in runs:
        run.stop.set()
        shutil.rmtree(run.folder, ignore_errors=True)
