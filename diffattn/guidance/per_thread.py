"""What a run knows belongs to the thread that runs it."""

from __future__ import annotations

import threading


class PerThread(threading.local):
    """Base of values that every thread has of its own. A copy of the model that holds them starts without any."""

    def __reduce_ex__(self, protocol: int) -> tuple:
        return type(self), ()
