"""Which processor runs in this thread: what a backend of diffusers' dispatcher cannot learn from its arguments."""

from __future__ import annotations

import threading
from typing import Any


class _Running(threading.local):
    """Set from the start, so that graphs need no guard for its absence."""

    def __init__(self) -> None:
        self.processor: Any = None


running = _Running()
