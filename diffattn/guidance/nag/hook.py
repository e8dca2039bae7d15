"""Normalised attention guidance in any unmodified pipeline: a hook that gives the transformer a second text."""

from __future__ import annotations

import inspect
import threading
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from ..._compat import CacheContextListener, add_listener, find_listener, remove_listener, renamed_context
from ...integration.progress import PresentScheduler, find_step
from ...models.text_inputs import text_inputs_for
from ..cfg import BOTH, UNCOND, PipelineCfg
from ..per_thread import PerThread
from .config import NAGConfig
from .cross import CrossTexts
from .forward import TwoTexts
from .joint import JointTexts
from .negative import Embedded

NAME = "diffattn.nag"

_counting = threading.Lock()


class _Forward(PerThread):
    """The forward of this thread while it goes on."""

    def __init__(self) -> None:
        self.texts: TwoTexts | None = None
        self.within = ExitStack()


class NAGHook(CacheContextListener):
    """Guides one transformer away from a negative prompt.

    It extends the inputs before a forward and trims the output after it. Head guidance, which runs the transformer
    again, does so through [`guided_inputs`].

    Args:
        transformer (`nn.Module`): to guide.
        config ([`NAGConfig`]): with no option of the formula left out.
        negative (`dict`): the text inputs of the transformer for the negative prompt.
        cfg ([`PipelineCfg`]): which call is which.
        scheduler ([`PresentScheduler`]): tells the step where the pipeline does not.

    Attributes:
        forwards, calls (`int`): forwards, and attention calls in them, that were guided.
    """

    def __init__(
        self,
        transformer: nn.Module,
        config: NAGConfig,
        negative: Embedded,
        cfg: PipelineCfg,
        scheduler: PresentScheduler,
    ) -> None:
        super().__init__()
        self.config, self.negative, self.cfg, self.scheduler = config, negative, cfg, scheduler
        self.text = text_inputs_for(transformer)
        self.forwards, self.calls = 0, 0
        self._names = list(inspect.signature(type(transformer).forward).parameters)[1:]
        self._forward = _Forward()
        self._handles: list = []
        self._owner = weakref.ref(transformer)

    @property
    def transformer(self) -> nn.Module:
        """That is guided."""
        return self._owner()

    @property
    def enlarges_batch(self) -> bool:
        """Whether the transformer runs with more samples than the pipeline gives it."""
        return self.text.cross_attention is None

    def attach(self) -> None:
        """Put it on the transformer: its inputs are changed before sparse attention looks at them."""
        transformer = self._owner()
        add_listener(transformer, self, NAME)
        self._handles = [
            transformer.register_forward_pre_hook(self._before, with_kwargs=True, prepend=True),
            transformer.register_forward_hook(self._after, prepend=True, always_call=True),
        ]

    def detach(self) -> None:
        """Take it off."""
        self._forward.within.close()
        for handle in self._handles:
            handle.remove()
        remove_listener(self._owner(), NAME)

    @contextmanager
    def guided_inputs(
        self, kind: str, inputs: dict[str, Any], step: tuple[int, int] | None
    ) -> Iterator[TwoTexts | None]:
        """Within it a forward with the inputs of what it yields is guided; None where it is to run as it is."""
        transformer = self._owner()
        if kind == UNCOND or not self.config.is_on(step):
            yield None
            return
        if getattr(transformer, "_parallel_config", None) is not None:
            raise NotImplementedError("guidance by a negative prompt does not run under context parallelism")
        first = inputs["x"] if "x" in inputs else inputs["hidden_states"]
        samples = self.cfg.cond_samples(len(first)) if kind == BOTH else slice(0, len(first))
        made = JointTexts if self.enlarges_batch else CrossTexts
        texts = made(transformer, self.text, self.negative, inputs, samples, self.config.formula_options())
        with renamed_context(transformer, self.context, "_nag"), texts.attached():
            yield texts
        self._note(texts)

    def _before(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        self._forward.within.close()
        if module is not self._owner():
            raise RuntimeError(
                f"this {type(module).__name__} is a copy of one that diffattn guides, and diffusers' hooks make such "
                "a copy run the weights of the original: call diffattn.unguide before copying"
            )
        inputs = self.by_name(args, kwargs)
        step = find_step(
            self.context, self.scheduler(), inputs.get("timestep", inputs.get("timesteps", inputs.get("t")))
        )
        kind = self.cfg.kind(self.context, inputs, None if step is None else step[0])
        texts = self._forward.within.enter_context(self.guided_inputs(kind, inputs, step))
        self._forward.texts = texts
        return None if texts is None else ((), texts.inputs)

    def _after(self, module: nn.Module, args: tuple, output: Any) -> Any:
        texts, self._forward.texts = self._forward.texts, None
        self._forward.within.close()
        return None if texts is None or output is None else texts.trimmed(output)

    def by_name(self, args: tuple, kwargs: dict) -> dict[str, Any]:
        """Inputs of the transformer by name."""
        return {**dict(zip(self._names, args)), **kwargs}

    def _note(self, texts: TwoTexts) -> None:
        if not texts.acted and not getattr(self._owner(), "is_cache_enabled", False):
            raise RuntimeError(
                f"no attention of {type(self._owner()).__name__} was guided: its layers do not see the text as "
                "diffattn expects"
            )
        with _counting:
            self.forwards += 1
            self.calls += texts.acted


def find_nag(transformer: nn.Module) -> NAGHook | None:
    """The hook of a transformer that is guided away from a negative prompt."""
    return find_listener(transformer, NAME)
