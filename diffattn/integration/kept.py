"""Results that are kept, and the memory that they take."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterable
from typing import Any

from torch import Tensor


class Kept:
    """The last few results of a function, for several threads; the oldest goes first."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._values: dict[Hashable, Any] = {}
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """What is kept under `key`, or `make()`."""
        with self._lock:
            if key in self._values:
                return self._values[key]
        value = make()
        with self._lock:
            self._values[key] = value
            while len(self._values) > self.most:
                del self._values[next(iter(self._values))]
        return value

    def values(self) -> list[Any]:
        """All that is kept now."""
        with self._lock:
            return list(self._values.values())

    def __getstate__(self) -> dict:
        return {"most": self.most}

    def __setstate__(self, state: dict) -> None:
        self.__init__(state["most"])


def bytes_of(things: Iterable[Any]) -> int:
    """Memory of all tensors in nested dataclasses, objects and containers, that of shared storages once."""
    found: dict[int, int] = {}
    for thing in things:
        _note_bytes(thing, found)
    return sum(found.values())


def _note_bytes(thing: Any, found: dict[int, int]) -> None:
    """The storages of all tensors in nested dataclasses, objects and containers, by address."""
    if isinstance(thing, Tensor):
        storage = thing.untyped_storage()
        found[storage.data_ptr()] = storage.nbytes()
        return
    parts = thing.values() if isinstance(thing, dict) else thing if isinstance(thing, (list, tuple)) else None
    if parts is None:
        parts = vars(thing).values() if hasattr(thing, "__dict__") and not isinstance(thing, type) else ()
    for part in parts:
        _note_bytes(part, found)
