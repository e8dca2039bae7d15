"""One self-attention module of a model and what happened in it."""

from __future__ import annotations

import threading
from collections import Counter

from torch import Tensor

from ..kernels.plan import Plan

UNREAD_CALLS = 1024

_counting = threading.Lock()


class _Mode(threading.local):
    """Whether this step is dense in a layer, for whatever reason: the one bool that compiled graphs look at."""

    def __init__(self, dense: bool) -> None:
        self.dense = dense


class Layer:
    """Counts of one layer, of all threads together.

    Args:
        name (`str`): qualified name of the attention module.
        index (`int`): place among the self-attention layers of the model.
        dense (`bool`): whether the schedule keeps it dense.

    Attributes:
        disabled (`bool`): whether diffattn was disabled since; a processor may outlive that, in a list of saved ones.
        plan ([`Plan`], *optional*): the last one, where plans are kept for looking at.
    """

    def __init__(self, name: str, index: int, dense: bool) -> None:
        self.name, self.index, self.dense = name, index, dense
        self.disabled = False
        self.mode = _Mode(dense)
        self.plan: Plan | None = None
        self.dense_calls: Counter = Counter()
        self._shares: Counter = Counter()  # calls by the shares of the visual and of all products they computed
        self._unread: list[tuple[Tensor, Tensor]] = []  # the same, still on a device that nobody waits for

    def begin_step(self, dense: bool) -> None:
        """This thread starts a step that runs dense in every layer, or does not."""
        self.mode.dense = dense or self.dense or self.disabled

    def disable(self) -> None:
        """Run dense from now on, in every thread."""
        self.disabled = True
        self.mode = _Mode(True)

    def why_dense(self, dense_step: bool) -> str:
        """The reason behind `mode.dense`."""
        return "diffattn was disabled" if self.disabled else "dense step" if dense_step else "dense layer"

    def count_dense(self, reason: str) -> None:
        """Note one dense call."""
        with _counting:
            self.dense_calls[reason] += 1

    def count_sparse(self, plan: Plan, share: float, keep: bool) -> None:
        """Note one sparse call, and the plan itself where it is to be kept.

        Of all products of queries and keys, dense attention would have computed `share`.
        """
        density, computed = plan.density_tensors()
        shares = (density, computed / share)
        with _counting:
            self._unread.append(shares)
            if shares[0].device.type == "cpu" or len(self._unread) > UNREAD_CALLS:
                self._read()
            if keep:
                self.plan = plan

    @property
    def sparse_calls(self) -> int:
        """Calls that ran a plan."""
        return self._shares.total() + len(self._unread)

    @property
    def density(self) -> float | None:
        """Mean share of the products between visual tokens in the sparse calls, None before the first."""
        return self._mean(0)

    @property
    def computed(self) -> float | None:
        """Mean share of all products in the sparse calls, those with text included."""
        return self._mean(1)

    def _mean(self, which: int) -> float | None:
        with _counting:
            self._read()
            shares = dict(self._shares)
        if len(shares) == 1:
            return next(iter(shares))[which]  # as it is, without rounding
        total = sum(pair[which] * calls for pair, calls in shares.items())
        return total / sum(shares.values()) if shares else None

    def _read(self) -> None:
        """Wait for the device and count what it found."""
        for pair in self._unread:
            self._shares[tuple(float(share) for share in pair)] += 1
        self._unread.clear()

    @property
    def calls(self) -> int:
        """Sparse and dense ones."""
        return self.sparse_calls + self.dense_calls.total()

    @property
    def attended(self) -> float:
        """What all calls computed, in units of dense calls."""
        return (self.computed or 0.0) * self.sparse_calls + self.dense_calls.total()

    def __getstate__(self) -> dict:
        with _counting:
            self._read()
        return {name: value for name, value in vars(self).items() if name not in ("mode", "plan")}

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state, plan=None, mode=_Mode(state["dense"] or state["disabled"]))
