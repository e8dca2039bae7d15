"""The thread that generates: one request at a time, on the one pipeline that is kept loaded."""

from __future__ import annotations

import gc
import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from diffusers.utils import export_to_video, logging

from ..analysis.errors import CommandError
from ..analysis.load import check_frames, default_fps, device_and_dtype, load_pipeline
from ..analysis.metrics import Comparison, compare_videos
from ..analysis.pictures import draw_plan
from ..analysis.trial import Trial, run_trial
from ..attention_config import AttentionConfig
from ..guidance import NAGConfig, map_model
from ..guidance.scope import guidance_scope
from ..integration.apply import find_transformers
from ..kernels.attend import choose_impl
from .head_maps import draw_heads, head_names, model_in
from .limits import Limits
from .models import Models
from .request import Request
from .sessions import Run

logger = logging.get_logger(__name__)

DENSE = "dense"


def title(name: str) -> str:
    """The name of a run on the page."""
    return "Dense" if name == DENSE else f"Sparse ({name})"


class Stopped(Exception):
    """A run ended before its last step, for the reason given."""


class Failed(Exception):
    """A run failed, with one line for the user."""


@dataclass(frozen=True)
class Progress:
    """The progress of a run; `seconds_left` covers both videos, None while unknown."""

    stage: str
    step: int = 0
    steps: int = 0
    seconds_left: float | None = None


@dataclass(frozen=True)
class VideoReady:
    """One of the two videos, and the median time of its steps."""

    name: str
    path: Path
    trial: Trial
    step_seconds: float


@dataclass(frozen=True)
class ComparisonReady:
    """The last event: how close the sparse video is to the dense one, and the method's maps of one head and of all."""

    comparison: Comparison
    tokens: int | None
    picture: Path | None
    heads: Path | None


Event = Progress | VideoReady | ComparisonReady


class Worker:
    """Runs requests one after the other.

    Args:
        models ([`Models`], *optional*): models that may be loaded.
        limits ([`Limits`], *optional*): limits of a request; those of the device if not given.
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
        self.device, self.dtype = device_and_dtype(device, dtype)
        self.limits = limits or Limits.of(torch.device(self.device).type)
        self._loaded: tuple[str, Any] | None = None
        self._heads: dict[str, list[str]] = {}
        self._jobs: queue.Queue[Callable[[], None] | None] = queue.Queue()
        # one thread for all runs: each new thread would leave memory of its own behind
        threading.Thread(target=_run_jobs, args=(self._jobs,), name="diffattn-demo", daemon=True).start()
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
        """The heads of a model as `"layer:head"`; none before its download."""
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
                if isinstance(event, ComparisonReady):
                    return
        finally:
            run.stop.set()

    def _work(self, request: Request, run: Run, emit: Callable[[Event | Exception], None]) -> None:
        try:
            self._generate_both(request, run, emit)
        except Stopped as stopped:
            emit(stopped)
        except (CommandError, ValueError, TypeError, OSError, ImportError) as error:
            emit(Failed(" ".join(str(error).split())))
        except Exception as error:
            logger.exception("a run of the demo failed")
            emit(Failed(f"The run failed with {type(error).__name__}; the log of the demo says more."))

    def _generate_both(self, request: Request, run: Run, emit: Callable[[Event], None]) -> None:
        if run.stop.is_set():
            raise Stopped("cancelled")
        emit(Progress("Loading the model"))
        pipe = self._pipeline(request.model)
        check_frames(pipe, request.frames)
        clock = _StepTimer(run.stop, self.limits.seconds, 2 * request.steps, emit)
        with _guidance(pipe, request):
            dense = self._generate(pipe, request, None, run, clock)
            emit(dense)
            sparse = self._generate(pipe, request, request.config, run, clock)
            emit(sparse)
        emit(Progress("Comparing"))
        comparison = compare_videos(sparse.trial.frames, dense.trial.frames)
        emit(ComparisonReady(comparison, *_pictures(pipe, request, sparse.trial, run.folder)))

    def _generate(
        self, pipe: Any, request: Request, config: AttentionConfig | None, run: Run, clock: _StepTimer
    ) -> VideoReady:
        name = config.method if config else DENSE
        clock.begin(name)
        options = {"schedule": request.schedule, "seed": request.seed, "on_step": clock.after_step}
        impl = choose_impl(pipe.device)[0]  # the method runs even where dense attention is faster
        trial = run_trial(pipe, request.inputs, config, **options, impl=impl, keep_plans=True)
        clock.check()
        path = run.folder / f"{name}.mp4"
        export_to_video(list(trial.frames), str(path), fps=default_fps(request.model))
        return VideoReady(name, path, trial, clock.median_step)

    def _pipeline(self, name: str) -> Any:
        folder = self.models.resolve(name)
        if self._loaded is None or self._loaded[0] != folder:
            self._loaded = None
            gc.collect()  # free the old model before the new one is loaded
            pipe = load_pipeline(folder, self.device, self.dtype)
            pipe.set_progress_bar_config(disable=True)
            self._heads[name] = head_names(map_model(find_transformers(pipe)[0]))
            self._loaded = folder, pipe
        return self._loaded[1]


def _run_jobs(jobs: queue.Queue) -> None:
    while (work := jobs.get()) is not None:
        work()
        del work  # the job holds the worker, which this thread must not keep alive
        jobs.task_done()


@contextmanager
def _guidance(pipe: Any, request: Request) -> Iterator[None]:
    heads = {"heads": list(request.heads), "scale": request.head_scale, "strength": request.head_strength}
    negative = NAGConfig(negative=request.nag) if request.nag.strip() else None
    with guidance_scope(pipe, heads if request.heads else None), guidance_scope(pipe, negative):
        yield


def _pictures(pipe: Any, request: Request, trial: Trial, folder: Path) -> tuple[int | None, Path | None, Path | None]:
    """Number of tokens, the map of one head and the maps of all; None where no call was sparse."""
    if trial.plan is None:
        return None, None, None
    one, every = folder / "attention.png", folder / "heads.png"
    draw_plan(trial.plan, one, f"{request.method}, middle layer, last step: density {trial.plan.density:.3f}")
    draw_heads(trial.plans, map_model(find_transformers(pipe)[0]), request.heads, every)
    return trial.plan.tokens, one, every


class _StepTimer:
    """Counts steps, estimates the remaining time, and ends a run that was stopped or takes too long."""

    def __init__(self, stop: threading.Event, limit: float, steps: int, emit: Callable[[Event], None]) -> None:
        self.stop, self.limit, self.steps, self.emit = stop, limit, steps, emit
        self.started = self.last = time.monotonic()
        self.name, self.done, self.times = "", 0, []

    def begin(self, name: str) -> None:
        self.name, self.times, self.last = title(name), [], time.monotonic()
        self.check()
        self.emit(Progress(self.name))

    def after_step(self, step: int, steps: int) -> None:
        now = time.monotonic()
        self.times.append(now - self.last)
        self.last = now
        self.done += 1
        self.check()
        if step == steps:
            self.emit(Progress(f"{self.name}: decoding the frames"))
            return
        self.emit(Progress(self.name, step, steps, max(self.steps - self.done, 0) * self.median_step))

    @property
    def median_step(self) -> float:
        return median(self.times) if self.times else 0.0

    def check(self) -> None:
        if self.stop.is_set():
            raise Stopped("cancelled")
        if time.monotonic() - self.started > self.limit:
            raise Stopped(f"it took longer than the {self.limit:.0f} seconds a run may take")
