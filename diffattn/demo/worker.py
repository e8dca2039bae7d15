"""The thread that generates: one request at a time, on the one pipeline that is kept loaded."""

from __future__ import annotations

import gc
import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from diffusers.utils import export_to_video, logging

from ..analysis.errors import CommandError
from ..analysis.load import check_frames, default_fps, load_pipeline, place
from ..analysis.metrics import Comparison, compare_videos
from ..analysis.pictures import draw_plan
from ..analysis.trial import Trial, run_trial
from ..attention_config import AttentionConfig
from ..guidance import guided, map_model
from ..integration.apply import find_transformers
from ..kernels.attend import choose_impl
from .heads import draw_heads, head_names, model_in
from .limits import Limits
from .models import Models
from .request import Request
from .sessions import Run

logger = logging.get_logger(__name__)

DENSE = "dense"


def title(name: str) -> str:
    """How a run is called on the page."""
    return "Dense" if name == DENSE else f"Sparse ({name})"


class Stopped(Exception):
    """A run ended before its last step, for the reason given."""


class Failed(Exception):
    """A run could not be done; one line for the user."""


@dataclass(frozen=True)
class Progress:
    """Where a run is; `seconds_left` of both videos, None while unknown."""

    stage: str
    step: int = 0
    steps: int = 0
    seconds_left: float | None = None


@dataclass(frozen=True)
class Made:
    """One of the two videos, and the median time of its steps."""

    name: str
    path: Path
    trial: Trial
    step_seconds: float


@dataclass(frozen=True)
class Compared:
    """The last event: how close the sparse video is to the dense one, and the method's maps of one head and of all."""

    comparison: Comparison
    tokens: int | None
    picture: Path | None
    heads: Path | None


Event = Progress | Made | Compared


class Worker:
    """Runs requests one after the other.

    Args:
        models ([`Models`], *optional*): what may be loaded.
        limits ([`Limits`], *optional*): what may be asked for; those of the device if not given.
        device, dtype (`str`, *optional*): as in `diffattn generate`.
    """

    def __init__(
        self,
        models: Models | None = None,
        limits: Limits | None = None,
        device: str | None = None,
        dtype: str | None = None,
    ) -> None:
        self.models = models or Models()
        self.device, self.dtype = place(device, dtype)
        self.limits = limits or Limits.of(torch.device(self.device).type)
        self._loaded: tuple[str, Any] | None = None
        self._heads: dict[str, list[str]] = {}
        self._jobs: queue.Queue[Callable[[], None] | None] = queue.Queue()
        # one thread for good: a new one for each run would leave memory of its own behind
        threading.Thread(target=_serve, args=(self._jobs,), name="diffattn-demo", daemon=True).start()
        weakref.finalize(self, self._jobs.put, None)

    @property
    def busy(self) -> bool:
        """Whether a run goes on or waits."""
        return self._jobs.unfinished_tasks > 0

    def check(self, request: Request) -> Request:
        """The request, checked without loading anything.

        Raises:
            ValueError: one line for the user.
        """
        self.models.check(request.model)
        return self.limits.check(request)

    def heads(self, model: str) -> list[str]:
        """The heads of a model as `"layer:head"`; none while they are not known, as before a download."""
        if model not in self._heads and (folder := self.models.folder(model)) is not None:
            found = model_in(folder)
            self._heads[model] = [] if found is None else head_names(found)
        return self._heads.get(model, [])

    def run(self, request: Request, run: Run) -> Iterator[Event]:
        """Events of a checked request; closing the iterator, or `run.stop`, ends the work at the next step.

        Raises:
            Failed: one line for the user.
            Stopped: why.
        """
        events: queue.SimpleQueue[Event | Exception] = queue.SimpleQueue()
        self._jobs.put(partial(self._work, request, run, events.put))
        try:
            while True:
                event = events.get()
                if isinstance(event, Exception):
                    raise event
                yield event
                if isinstance(event, Compared):
                    return
        finally:
            run.stop.set()

    def _work(self, request: Request, run: Run, say: Callable[[Event | Exception], None]) -> None:
        try:
            self._make_both(request, run, say)
        except Stopped as stopped:
            say(stopped)
        except (CommandError, ValueError, TypeError, OSError, ImportError) as error:
            say(Failed(" ".join(str(error).split())))
        except Exception as error:
            logger.exception("a run of the demo failed")
            say(Failed(f"The run failed with {type(error).__name__}; the log of the demo says more."))

    def _make_both(self, request: Request, run: Run, say: Callable[[Event], None]) -> None:
        if run.stop.is_set():
            raise Stopped("cancelled")
        say(Progress("Loading the model"))
        pipe = self._pipeline(request.model)
        check_frames(pipe, request.frames)
        clock = _Clock(run.stop, self.limits.seconds, 2 * request.steps, say)
        with _guidance(pipe, request):
            dense = self._make(pipe, request, None, run, clock)
            say(dense)
            sparse = self._make(pipe, request, request.config, run, clock)
            say(sparse)
        say(Progress("Comparing"))
        comparison = compare_videos(sparse.trial.frames, dense.trial.frames)
        say(Compared(comparison, *_pictures(pipe, request, sparse.trial, run.folder)))

    def _make(self, pipe: Any, request: Request, config: AttentionConfig | None, run: Run, clock: _Clock) -> Made:
        name = config.method if config else DENSE
        clock.begin(name)
        trial = run_trial(
            pipe,
            request.inputs,
            config,
            schedule=request.schedule,
            impl=choose_impl(pipe.device)[0],  # shows the method even where dense attention is faster
            seed=request.seed,
            on_step=clock.after_step,
            keep_plans=True,
        )
        clock.check()
        path = run.folder / f"{name}.mp4"
        export_to_video(list(trial.frames), str(path), fps=default_fps(request.model))
        return Made(name, path, trial, clock.median_step)

    def _pipeline(self, name: str) -> Any:
        folder = self.models.resolve(name)
        if self._loaded is None or self._loaded[0] != folder:
            self._loaded = None
            gc.collect()  # the old model must be gone before the new one comes
            pipe = load_pipeline(folder, self.device, self.dtype)
            pipe.set_progress_bar_config(disable=True)
            self._heads[name] = head_names(map_model(find_transformers(pipe)[0]))
            self._loaded = folder, pipe
        return self._loaded[1]


def _serve(jobs: queue.Queue) -> None:
    while (work := jobs.get()) is not None:
        work()
        del work  # it holds the worker, and this thread is not to keep it alive
        jobs.task_done()


def _guidance(pipe: Any, request: Request) -> AbstractContextManager:
    if not request.heads:
        return nullcontext()
    return guided(pipe, list(request.heads), scale=request.head_scale, strength=request.head_strength)


def _pictures(pipe: Any, request: Request, trial: Trial, folder: Path) -> tuple[int | None, Path | None, Path | None]:
    """Number of tokens, the map of one head and those of all; None where nothing ran sparse."""
    if trial.plan is None:
        return None, None, None
    one, every = folder / "attention.png", folder / "heads.png"
    draw_plan(trial.plan, one, f"{request.method}, middle layer, last step: density {trial.plan.density:.3f}")
    draw_heads(trial.plans, map_model(find_transformers(pipe)[0]), request.heads, every)
    return trial.plan.tokens, one, every


class _Clock:
    """Counts steps, says how long the rest takes, and ends a run that was stopped or takes too long."""

    def __init__(self, stop: threading.Event, limit: float, steps: int, say: Callable[[Event], None]) -> None:
        self.stop, self.limit, self.steps, self.say = stop, limit, steps, say
        self.started = self.last = time.monotonic()
        self.name, self.done, self.times = "", 0, []

    def begin(self, name: str) -> None:
        self.name, self.times, self.last = title(name), [], time.monotonic()
        self.check()
        self.say(Progress(self.name))

    def after_step(self, step: int, steps: int) -> None:
        now = time.monotonic()
        self.times.append(now - self.last)
        self.last = now
        self.done += 1
        self.check()
        if step == steps:
            self.say(Progress(f"{self.name}: decoding the frames"))
            return
        self.say(Progress(self.name, step, steps, max(self.steps - self.done, 0) * self.median_step))

    @property
    def median_step(self) -> float:
        return median(self.times) if self.times else 0.0

    def check(self) -> None:
        if self.stop.is_set():
            raise Stopped("cancelled")
        if time.monotonic() - self.started > self.limit:
            raise Stopped(f"it took longer than the {self.limit:.0f} seconds a run may take")
