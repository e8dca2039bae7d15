"""Plans of a dynamic method that are used for several steps of one run."""

from __future__ import annotations

import threading
import weakref
from collections import Counter
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

from ..kernels.plan import Plan
from ..kernels.plan.trim import trim
from .kept import bytes_of

MOST_FORWARDS = 16  # of one name in one step; a pipeline that makes more of them does not tell its steps


class Forward(NamedTuple):
    """What one forward of a transformer says about the run it belongs to.

    Args:
        step (`int`): number of the denoising step, from 0.
        steps (`int`): of the run.
        sparse (`range`): steps that no schedule keeps dense.
        name (`str`, *optional*): how the pipeline calls this pass: `"cond"`, `"uncond"`.
        timesteps (`torch.Tensor`, *optional*): those of the scheduler, which makes a new tensor for every run.
        grid (`tuple[int, int, int]`, *optional*): of the visual tokens.
    """

    step: int
    steps: int
    sparse: range
    name: str | None
    timesteps: Any
    grid: tuple[int, int, int] | None

    def follows(self, last: Forward) -> bool:
        """Whether this forward belongs to the run of the one before it."""
        same = (self.steps, self.grid) == (last.steps, last.grid) and self.timesteps is last.timesteps
        return same and self.step >= last.step


class _Run:
    """The run that one thread is in.

    A plan is kept under the layer, the pass (its name, and which forward of that name in the step it is), the number
    of the layer's call within the forward, and what else the caller says. So every plan is used once a step.
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Leave the run, and let go of its plans."""
        self.now: Forward | None = None
        self.forwards: Counter = Counter()
        self.calls: Counter = Counter()
        self.plans: dict[Hashable, tuple[Plan, int]] = {}  # and the step from which it is too old
        self.unmeasured = False

    def begin_forward(self, forward: Forward) -> None:
        if self.now is not None and not self._goes_on(forward):
            self.forget()
        if self.now is None or forward.step > self.now.step:
            self.forwards.clear()
            self.plans = {key: kept for key, kept in self.plans.items() if forward.step < kept[1]}
        self.now = forward
        self.forwards[forward.name] += 1
        self.calls.clear()

    def _goes_on(self, forward: Forward) -> bool:
        if not forward.follows(self.now):
            return False
        # without a scheduler, a pass that comes again in its step is the first sign of another run
        most = 1 if forward.timesteps is None else MOST_FORWARDS
        return forward.step > self.now.step or self.forwards[forward.name] < most

    def get(self, layer: Hashable, key: Hashable, make: Callable[[], Plan], refresh: int) -> Plan:
        now = self.now
        key = (layer, now.name, self.forwards[now.name], self.calls[layer], key)
        self.calls[layer] += 1
        plan, end = self.plans.pop(key, (None, min(now.step + refresh, now.sparse.stop)))
        last = now.step + 1 >= end
        if plan is None:
            plan, self.unmeasured = make(), True
            plan = plan if last else trim(plan)
        if not last:
            self.plans[key] = plan, end
        return plan


class KeptPlans:
    """The plans of one method that are kept, thread by thread, for the run that the thread is in.

    No plan is handed from the conditional to the unconditional pass, from one run to the next, or to a call of another
    shape. It is let go when the last step that may use it has done so.

    Args:
        refresh (`int`): for how many steps a plan is used; with 1 none is kept.

    Attributes:
        most_bytes (`int`): memory of the kept plans of one run, the most there was.
    """

    def __init__(self, refresh: int = 1) -> None:
        self.refresh, self.most_bytes = refresh, 0
        self._thread = threading.local()
        self._runs: weakref.WeakSet[_Run] = weakref.WeakSet()  # those of threads that live
        self._lock = threading.Lock()

    def begin_forward(self, forward: Forward | None) -> None:
        """A forward starts in this thread; None if nothing is to be kept from it or used in it."""
        run = self._run()
        if run.unmeasured:
            run.unmeasured = False
            size = bytes_of(plan for plan, _ in list(run.plans.values()))
            with self._lock:
                self.most_bytes = max(self.most_bytes, size)
        if forward is None:
            run.forget()
        elif self.refresh > 1:
            run.begin_forward(forward)

    def get(self, layer: Hashable, key: Hashable, make: Callable[[], Plan]) -> Plan:
        """The plan of a call: that of a few steps ago, or `make()`."""
        run = self._run()
        return make() if run.now is None else run.get(layer, key, make, self.refresh)

    def forget(self) -> None:
        """Let go of the plans of all threads."""
        with self._lock:
            for run in self._runs:
                run.forget()

    def values(self) -> list[Plan]:
        """All plans that are kept now."""
        with self._lock:
            return [plan for run in self._runs for plan, _ in list(run.plans.values())]

    def _run(self) -> _Run:
        run = getattr(self._thread, "run", None)
        if run is None:
            run = self._thread.run = _Run()
            with self._lock:
                self._runs.add(run)
        return run

    def __getstate__(self) -> dict:
        return {"refresh": self.refresh}

    def __setstate__(self, state: dict) -> None:
        self.__init__(**state)
